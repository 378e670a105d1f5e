/// @file
/// Networks of which one is in memory at a time, where all together are too large for it.
///
///     const auto networks = one_at_a_time({[] { return load_network("small.pt"); }, [] { return load_network("xl.pt");
///     }});
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/torch_error.hpp"
#include "network.hpp"

namespace tstitch {

/// Makes a network, the same one each time.
using NetworkLoader = std::function<Network()>;

namespace detail {

/// The networks, and which of them is there.
class OneAtATime {
 public:
  explicit OneAtATime(std::vector<NetworkLoader> const& loaders) {
    for (NetworkLoader const& loader : loaders) {
      require_callable("one_at_a_time", loader);
      networks_.push_back({.load = loader});
    }
    // Once each, to know them; the first one stays, because runs begin with it.
    for (std::size_t k = loaders.size(); k-- > 0;) {
      bring(k);
      networks_[k].stated.emplace(*here_);
    }
  }

  /// What the network inside said of itself when it was loaded first.
  struct Stated {
    explicit Stated(Network const& network)
        : info(network.info()),
          device(network.device()),
          knows_timestep(network.knows_timestep()),
          repeats_x(network.repeats_x()),
          settles_at_once(network.settles_at_once()),
          forecasts(network.forecasts()) {}

    NetworkInfo info;
    at::Device device;
    bool knows_timestep, repeats_x, settles_at_once, forecasts;
  };

  Stated const& stated(std::size_t k) const { return *networks_[k].stated; }

  /// Calls `use` with network k, which is loaded where it is not there, once nobody uses another one.
  template <class Use>
  auto with(std::size_t k, Use use) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !loading_ && (current_ == k || users_ == 0); });
    if (current_ != k || !here_) load(k, lock);
    ++users_;
    lock.unlock();
    const Leaving leaving{*this};
    return use(*here_);  // which stays as long as it is used
  }

  void prepare(std::size_t k, std::span<const double> timesteps, Condition const& condition) {
    std::unique_lock lock(mutex_);
    networks_[k].prepared = {{timesteps.begin(), timesteps.end()}, condition};
    if (loading_ || current_ != k || !here_) return;  // it is told when it is there
    ++users_;
    lock.unlock();
    const Leaving leaving{*this};
    here_->prepare(timesteps, condition);
  }

 private:
  struct Prepared {
    std::vector<double> timesteps;
    Condition condition;
  };

  struct Slot {
    NetworkLoader load;
    std::optional<Stated> stated = {};
    std::optional<Prepared> prepared = {};
  };

  /// Ends a use, also by an exception.
  struct Leaving {
    OneAtATime& all;
    ~Leaving() {
      const std::lock_guard lock(all.mutex_);
      --all.users_;
      all.changed_.notify_all();
    }
  };

  void load(std::size_t k, std::unique_lock<std::mutex>& lock) {
    loading_ = true;
    const std::optional<Prepared> prepared = networks_[k].prepared;
    lock.unlock();
    std::exception_ptr failed;
    try {
      bring(k);
      if (prepared) here_->prepare(prepared->timesteps, prepared->condition);
    } catch (...) {
      failed = std::current_exception();
    }
    lock.lock();
    loading_ = false;
    if (failed) here_.reset();
    changed_.notify_all();
    if (failed) std::rethrow_exception(failed);
  }

  /// Puts network k in the place of the one that is there.
  void bring(std::size_t k) {
    // As a program loads networks, whatever surrounds the call that needs this one.
    const c10::InferenceMode no_inference(false);
    const c10::AutoGradMode gradients(true);
    if (here_ && here_->device().is_cuda()) {  // what was asked of it may be still to do
      at::detail::getCUDAHooks().deviceSynchronize(here_->device().index());
    }
    here_.reset();
    current_ = k;
    std::optional<Stated> const& before = networks_[k].stated;
    try {
      here_.emplace(networks_[k].load());
    } catch (std::exception const& error) {
      if (!before) throw;
      throw std::runtime_error("tstitch::one_at_a_time: " + name_of(k) +
                               " must be there to be loaded again, got: " + reason(error));
    }
    if (!before) return;
    const Stated now(*here_);
    const bool same = now.info.name == before->info.name && now.info.shape == before->info.shape &&
                      now.info.prediction_type == before->info.prediction_type &&
                      now.info.learned_variance == before->info.learned_variance &&
                      now.info.num_classes == before->info.num_classes && now.device == before->device &&
                      now.knows_timestep == before->knows_timestep && now.repeats_x == before->repeats_x &&
                      now.forecasts == before->forecasts;
    if (same) return;
    here_.reset();
    throw std::runtime_error("tstitch::one_at_a_time: " + name_of(k) +
                             " must be the network that it was, got another one ('" + printable(now.info.name) + "')");
  }

  std::string name_of(std::size_t k) const {
    return "network " + std::to_string(k) + " ('" + printable(networks_[k].stated->info.name) + "')";
  }

  std::vector<Slot> networks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Network> here_;
  std::size_t current_ = 0;  // which one that is
  int users_ = 0;            // calls in it
  bool loading_ = false;
};

/// One of them, as a network.
struct OneOfThem {
  std::shared_ptr<OneAtATime> all;
  std::size_t index;
  bool knows_timestep, repeats_x, settles_at_once, forecasts;

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    return all->with(index, [&](Network const& network) { return network(x, t, condition, evaluation); });
  }

  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    all->prepare(index, timesteps, condition);
  }
};

}  // namespace detail

/// The networks of a run, in the order of use, of which one is in memory at a time: where another one is asked, that
/// one goes and this one is loaded. A stitched run loads at each switch, and at its beginning where the one before
/// ended with the other; so does every batch, which is why large ones are better. A guide network, or one that every
/// other step asks, costs a load at each of these steps.
///
/// Each is loaded once here, the first one last, which stays. Answers are those of the networks themselves, to the bit.
/// Several threads may ask them: who asks for another one waits until the calls in this one have ended.
/// @param loaders the networks, with their graphs and what else is done to them; they live as long as the result
/// @throws what the loaders throw; std::invalid_argument for one that is empty
/// @throws std::runtime_error, in a run, naming the network, where it cannot be loaded again or is another one
inline std::vector<Network> one_at_a_time(std::vector<NetworkLoader> const& loaders) {
  std::vector<Network> networks;
  if (loaders.empty()) return networks;
  const auto all = std::make_shared<detail::OneAtATime>(loaders);
  for (std::size_t k = 0; k < loaders.size(); ++k) {
    detail::OneAtATime::Stated const& stated = all->stated(k);
    networks.emplace_back(
        detail::OneOfThem{all, k, stated.knows_timestep, stated.repeats_x, stated.settles_at_once, stated.forecasts},
        stated.info, stated.device);
  }
  return networks;
}

}  // namespace tstitch
