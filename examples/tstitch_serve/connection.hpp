/// @file
/// The connection of one client, and the server that takes them.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <httplib.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../common/moment.hpp"

/// The connection of one client, for one request and its response. A client that closes it, or says that it will send
/// no more, has hung up.
///
/// httplib's own streams wait anew for each byte, and read headers without end.
class Connection : public httplib::Stream {
 public:
  static constexpr std::size_t most_header = 16'384;  ///< bytes of the request line and headers

  enum class Fault { none, too_slow, too_large };

  /// @param seconds that the client may take to send its request, and to read on
  /// @param closing when it becomes true nothing more is read
  Connection(int socket, double seconds, std::atomic<bool> const& closing)
      : socket_(socket),
        patience_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))),
        deadline_(Clock::now() + patience_),
        closing_(closing) {}

  /// That of this thread; null where it has none.
  static inline thread_local Connection* current = nullptr;

  /// The headers are read, and a body of so many bytes may follow.
  void expect_body(std::size_t bytes) { room_ = std::max(room_, received_ + bytes); }

  /// What is wrong with the request, so that it could not be read.
  Fault fault() const { return fault_; }

  bool has_received() const { return received_ > 0; }
  bool has_sent() const { return sent_; }

  /// Whether the client has hung up.
  bool gone() const {
    pollfd state{socket_, POLLRDHUP, 0};
    return poll(&state, 1, 0) != 0;  // an error is no good connection, either
  }

  /// Ends it so that the client can read what was sent, also where it has sent more than was read.
  void finish() {
    shutdown(socket_, SHUT_WR);
    std::array<char, 4096> left;
    std::size_t most = 1 << 20;
    for (const Clock::time_point end = Clock::now() + std::chrono::seconds(1); most > 0 && Clock::now() < end;) {
      if (!waits_for(POLLIN, end)) break;
      const ssize_t count = recv(socket_, left.data(), left.size(), MSG_DONTWAIT);
      if (count <= 0) break;
      most -= std::min(most, std::size_t(count));
    }
    close(socket_);
  }

  // Without `override`, for versions of httplib differ in which of these there are.
  ssize_t read(char* to, std::size_t size) {
    if (begin_ == end_) {
      if (received_ >= room_) return failed(Fault::too_large);
      if (!waits_for(POLLIN, deadline_)) return failed(closing_ ? Fault::none : Fault::too_slow);
      const ssize_t count = recv(socket_, buffer_.data(), std::min(buffer_.size(), room_ - received_), MSG_DONTWAIT);
      if (count <= 0) return count;
      received_ += std::size_t(count);
      begin_ = 0;
      end_ = std::size_t(count);
    }
    const std::size_t count = std::min(size, end_ - begin_);
    std::memcpy(to, buffer_.data() + begin_, count);
    begin_ += count;
    return ssize_t(count);
  }

  ssize_t write(char const* from, std::size_t size) {
    for (std::size_t written = 0; written < size;) {
      const ssize_t count = send(socket_, from + written, size - written, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count >= 0) {
        sent_ = true;
        written += std::size_t(count);
      } else if (errno == EINTR) {
      } else if ((errno != EAGAIN && errno != EWOULDBLOCK) || !waits_for(POLLOUT, Clock::now() + patience_)) {
        return -1;
      }
    }
    return ssize_t(size);
  }

  bool is_readable() const { return begin_ < end_ || waits_for(POLLIN, Clock::now()); }
  bool is_writable() const { return !gone(); }
  bool wait_readable() const { return begin_ < end_ || waits_for(POLLIN, deadline_); }
  bool wait_writable() const { return waits_for(POLLOUT, Clock::now() + patience_) && !gone(); }
  bool is_peer_alive() const { return !gone(); }
  void get_remote_ip_and_port(std::string& ip, int& port) const { ip.clear(), port = 0; }
  void get_local_ip_and_port(std::string& ip, int& port) const { ip.clear(), port = 0; }
  int socket() const { return socket_; }
  std::time_t duration() const { return 0; }

 private:
  ssize_t failed(Fault fault) {
    if (fault_ == Fault::none) fault_ = fault;
    return -1;
  }

  /// @returns whether it is so before the end
  bool waits_for(short event, Clock::time_point end) const {
    while (true) {
      pollfd state{socket_, event, 0};
      const int now = poll(&state, 1, int(std::clamp<std::int64_t>(milliseconds_until(end), 0, 100)));
      if (now > 0) return true;
      if (now < 0 && errno != EINTR) return false;
      if (closing_ || Clock::now() >= end) return false;
    }
  }

  static std::int64_t milliseconds_until(Clock::time_point end) {
    return std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
  }

  int socket_;
  Clock::duration patience_;
  Clock::time_point deadline_;  // of the request
  std::atomic<bool> const& closing_;
  std::size_t room_ = most_header, received_ = 0;
  std::array<char, 4096> buffer_ = {};
  std::size_t begin_ = 0, end_ = 0;
  bool sent_ = false;
  Fault fault_ = Fault::none;
};

/// A thread for each of so many clients, kept for the next ones; none for more.
class ClientThreads : public httplib::TaskQueue {
 public:
  explicit ClientThreads(std::size_t most) : most_(most) {}

  /// Whether the client that is being served has no thread, for there are too many.
  static inline thread_local bool one_too_many = false;

  /// What versions of httplib have it return: nothing, or whether it is done.
  using Enqueued = decltype(std::declval<httplib::TaskQueue&>().enqueue({}));

  Enqueued enqueue(std::function<void()> serve) override {
    bool room = false;
    {
      const std::lock_guard lock(mutex_);
      room = busy_ < most_;
      if (room) {
        ++busy_;
        clients_.push_back(std::move(serve));
        if (clients_.size() > idle_) threads_.emplace_back([this] { work(); });
      }
    }
    if (room) {
      changed_.notify_one();
    } else {
      one_too_many = true;
      serve();
      one_too_many = false;
    }
    return Enqueued(true);
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [&] { return stops_ || !clients_.empty(); });
      --idle_;
      if (clients_.empty()) return;
      const std::function<void()> serve = std::move(clients_.front());
      clients_.pop_front();
      lock.unlock();
      serve();
      lock.lock();
      --busy_;
    }
  }

  std::size_t most_;
  std::mutex mutex_ = {};  // of what follows
  std::condition_variable changed_ = {};
  std::deque<std::function<void()>> clients_ = {};
  std::size_t busy_ = 0, idle_ = 0;  // clients, with those that wait for a thread; threads
  bool stops_ = false;
  std::vector<std::thread> threads_ = {};
};

/// A server of HTTP whose connections are as above.
class Server : public httplib::Server {
 public:
  struct Options {
    int connections;
    double client_seconds;
    std::size_t most_body;
    /// The whole response to a client, of a status and without a request that can be read.
    std::function<std::string(int status, std::string const& message)> refuse;
  };

  explicit Server(Options options) : options_(std::move(options)) {
    new_task_queue = [this] { return new ClientThreads(std::size_t(options_.connections)); };
    set_payload_max_length(options_.most_body);
    set_tcp_nodelay(true);
    // Not SO_REUSEPORT, which httplib takes: with that two programs may listen at one port.
    set_socket_options([](int socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
  }

  /// @param port 0: any
  /// @returns the port; 0 where that is not to be had
  int bind(std::string const& host, int port) {
    if (port == 0)
      port = std::max(bind_to_any_port(host), 0);
    else if (!bind_to_port(host, port))
      return 0;
    if (port > 0) ::listen(svr_sock_, SOMAXCONN);  // httplib lets 5 clients wait
    return port;
  }

  /// Takes no more clients, and reads no more of those that it has.
  void close() {
    closing_ = true;
    stop();
  }

 private:
  bool process_and_close_socket(socket_t socket) override {
    Connection connection(socket, options_.client_seconds, closing_);
    if (ClientThreads::one_too_many) {
      turn_away(connection, socket);
      return true;
    }
    Connection::current = &connection;
    bool closed = false;
    const auto headers_are_there = [&](httplib::Request& request) {
      connection.expect_body(options_.most_body);
      // Pictures are compressed already, and parts of responses are of no use.
      request.headers.erase("Accept-Encoding");
      request.headers.erase("Range");
      request.ranges.clear();
    };
    const auto process = [&](auto* self) {
      if constexpr (requires { self->process_request(connection, true, closed, headers_are_there); }) {
        return self->process_request(connection, true, closed, headers_are_there);
      } else {
        return self->process_request(connection, "", 0, "", 0, true, closed, headers_are_there);
      }
    };
    const bool done = process(this);
    // httplib says nothing where there is no first line.
    if (!connection.has_sent() && connection.has_received() && connection.fault() != Connection::Fault::none) {
      const bool slow = connection.fault() == Connection::Fault::too_slow;
      const std::string response =
          slow ? options_.refuse(408, "must come within " + tstitch::words::text(options_.client_seconds) + " s")
               : options_.refuse(
                     431, "must have at most " + std::to_string(Connection::most_header) + " bytes before the body");
      connection.write(response.data(), response.size());
    }
    Connection::current = nullptr;
    connection.finish();
    return done;
  }

  /// On the thread that takes clients, so it must be short.
  void turn_away(Connection& connection, int socket) {
    pollfd request{socket, POLLIN, 0};
    std::array<char, 4096> read;
    // What was not read would make the system take the response back.
    if (poll(&request, 1, 20) > 0) recv(socket, read.data(), read.size(), MSG_DONTWAIT);
    const std::string response = options_.refuse(
        503, "must be at most " + std::to_string(options_.connections) + " clients at once, got another one");
    send(socket, response.data(), response.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(socket, SHUT_RDWR);
    ::close(connection.socket());
  }

  Options options_;
  std::atomic<bool> closing_ = false;
};
