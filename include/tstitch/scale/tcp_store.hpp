/// @file
/// The store of torch.distributed, where processes of one or many machines meet. For who includes it: it reads much of
/// torch's headers.
#pragma once

#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "../base/error.hpp"
#include "within.hpp"
#include "world.hpp"

namespace tstitch {

/// Meets the other processes in c10d::TCPStore, at the host and port of the world. Without a launcher that has a store
/// there, rank 0 hosts it, and has to be there the longest. A WorkerStore; of copies all are the same one.
class TCPStore {
 public:
  /// @param seconds that connecting, and every answer, may take
  /// @throws std::invalid_argument for the world of a process alone, which has no place to meet, and for no time
  /// @throws std::runtime_error for a port that is in use, and a host that does not answer in time
  explicit TCPStore(World const& world, double seconds = 20)
      : place_(world.host + ":" + std::to_string(world.port)),
        prefix_("tstitch/" + world.run + "/"),
        seconds_(seconds) {
    if (world.host.empty()) detail::refuse("TCPStore", "must be for several processes", "a world of one");
    if (!(seconds > 0 && seconds < 1e6)) detail::refuse("TCPStore", "seconds must be above 0 and below 10^6", seconds);
    c10d::TCPStoreOptions options;
    options.port = world.port;
    options.isServer = world.hosts();
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(std::int64_t(seconds * 1000));
    const std::string rule = options.isServer ? "must be a port that is free, to host the store of the run"
                                              : "must have a store of torch.distributed that answers";
    store_ = answer<c10::intrusive_ptr<c10d::TCPStore>>(
        rule, [host = world.host, options] { return c10::make_intrusive<c10d::TCPStore>(host, options); });
  }

  std::string get(std::string const& key) { return compare_set(key, "", ""); }

  std::string compare_set(std::string const& key, std::string const& expected, std::string const& desired) {
    return asked<std::string>(
        [=, name = prefix_ + key](c10d::Store& store) { return store.compareSet(name, expected, desired); });
  }

  std::int64_t add(std::string const& key, std::int64_t amount) {
    return asked<std::int64_t>([=, name = prefix_ + key](c10d::Store& store) { return store.add(name, amount); });
  }

 private:
  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::TCPStore: " + detail::quoted(place_) + ": " + rule + ", got " + got);
  }

  /// Torch waits without a limit for what does not answer: a machine that is gone without a word, or a port at which
  /// something else listens.
  template <class Answer, class Action>
  Answer answer(std::string const& rule, Action action) const {
    const auto given = std::make_shared<Answer>();
    std::string wrong = "no answer in " + detail::text(seconds_) + " s";
    try {
      if (detail::within(seconds_ + 2, [given, action] { *given = action(); })) return std::move(*given);
    } catch (c10::Error const& error) {
      wrong = error.what_without_backtrace();
      wrong = "'" + detail::printable(wrong.substr(0, wrong.find('\n')), 300) + "'";
    }
    fail(rule, wrong);
  }

  template <class Answer, class Action>
  Answer asked(Action action) const {
    return answer<Answer>("must go on to have the store of the run",
                          [store = store_, action] { return action(*store); });
  }

  std::string place_, prefix_;
  double seconds_;
  c10::intrusive_ptr<c10d::TCPStore> store_ = {};
};

}  // namespace tstitch
