/// @file
/// Ends well when told to: by Ctrl-C (SIGINT), kill (SIGTERM) or a terminal that closes (SIGHUP).
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <thread>

/// The signal that asked the program to stop; 0: none. Then what is finished is kept, and the exit code is 128 more.
inline std::atomic<int> stopped_by = 0;

/// Whether there is something to keep. Until then the first signal ends the program at once.
inline std::atomic<bool> has_begun = false;

/// What is to be done before a signal ends the program at once, such as giving a terminal back as it was.
inline std::atomic<void (*)()> before_exit = nullptr;

/// A second Ctrl-C or SIGTERM ends the program as usual; of SIGHUP a terminal that closes may send two.
///
/// A thread of its own waits for them, and every other has them blocked: a handler on a thread that computes would
/// write where oneDNN's generated products keep numbers, below the stack.
inline void watch_for_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  std::signal(SIGINT, SIG_DFL);  // shells start what runs behind them with it ignored
  for (const int signal : {SIGTERM, SIGHUP}) {
    struct sigaction now = {};
    sigaction(signal, nullptr, &now);
    if (now.sa_handler != SIG_IGN) sigaddset(&signals, signal);  // as nohup wants it
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads that are made from now on have them blocked, too
  std::thread([signals] {
    int received = 0;
    sigwait(&signals, &received);
    const auto leave = [] {
      if (auto* const last = before_exit.load()) last();
    };
    if (!has_begun) {
      leave();
      std::_Exit(128 + received);
    }
    stopped_by = received;
    do {
      sigwait(&signals, &received);
    } while (received == SIGHUP);
    leave();
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(received);
  }).detach();
}
