/// @file
/// How many pictures to draw at once, measured.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../file/loading.hpp"
#include "../model/network.hpp"
#include "../plan/plan.hpp"
#include "../tensor/torch_error.hpp"

namespace tstitch {

/// What a picture takes in batches of a size.
struct BatchTime {
  std::int64_t batch = 0;  ///< pictures
  double seconds = 0;      ///< a picture, for all evaluations of its networks
};

/// Measures what pictures take in batches of 1, 2, 4 ... of them and, last, `most`; all by what the plan asks of the
/// networks, which are called with zeros. It ends early where twice the batch makes a picture more than a tenth slower,
/// or does not fit into the memory of a GPU. Waits for the GPU.
///
/// Which size wins is a matter of noise where two are as fast, and pictures have other last bits in other batches: note
/// the size down, or pad batches (Request::pad_batches), where the bits matter.
/// @param plan of the sampler, as its `plan` returns it
/// @param most at least 1
/// @param sizes that networks leave open
/// @tparam Clock of the standard's kind
/// @throws std::invalid_argument for open sizes that are not given, and for fewer networks than the plan has
template <class Clock = std::chrono::steady_clock>
std::vector<BatchTime> time_batches(Plan const& plan, std::vector<Network> const& networks, std::int64_t most,
                                    InputSizes const& sizes = {}) {
  if (most < 1) detail::refuse("time_batches", "most must be at least 1", std::to_string(most));
  if (plan.calls().size() > networks.size()) {
    detail::refuse("time_batches", "networks must be at least " + std::to_string(plan.calls().size()),
                   std::to_string(networks.size()));
  }
  // Evaluations by network and rows of a picture: guidance asks for two at once.
  std::map<std::pair<std::size_t, int>, int> evaluations;
  for (PlannedStep const& planned : plan.steps) {
    if (!planned.forecast.network) {  // what is forecast costs next to nothing
      evaluations[{planned.network, planned.both_halves() ? 2 : 1}] += planned.evaluations;
    }
    if (planned.guide_evaluations) evaluations[{planned.guide_network, 1}] += planned.guide_evaluations;
  }
  std::map<std::size_t, NetworkInfo> infos;
  for (auto const& [asked, count] : evaluations) {
    if (infos.contains(asked.first)) continue;
    infos.emplace(asked.first, detail::closed("time_batches", networks[asked.first].info(), sizes));
  }
  const c10::AutoGradMode no_gradients(false);
  const auto seconds_of = [&](std::size_t k, std::int64_t rows) {
    Network const& network = networks[k];
    NetworkInfo const& info = infos.at(k);
    const auto wait = [&] {
      if (network.device().is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(network.device().index());
    };
    detail::run_on_zeros(network, info, rows, 3);  // what is done once for a shape
    wait();
    double least = 0;
    for (int run = 0; run < 3; ++run) {
      const typename Clock::time_point start = Clock::now();
      detail::run_on_zeros(network, info, rows, 1);
      wait();
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      least = run ? std::min(least, seconds) : seconds;
    }
    return least;
  };
  std::vector<BatchTime> times;
  double least = 0;
  for (std::int64_t batch = 1;; batch = std::min(2 * batch, most)) {
    BatchTime time{.batch = batch};
    try {
      for (auto const& [asked, count] : evaluations) {
        time.seconds += count * seconds_of(asked.first, batch * asked.second) / double(batch);
      }
    } catch (std::exception const& error) {
      if (times.empty() || !detail::is_out_of_memory(error)) throw;
      break;
    }
    times.push_back(time);
    least = times.size() == 1 ? time.seconds : std::min(least, time.seconds);
    if (batch == most || time.seconds > 1.1 * least) break;
  }
  return times;
}

/// @param times at least one, of growing batches
/// @returns the smallest batch that is within 2 % of the fastest, which is what measuring again may differ by
inline std::int64_t fastest_batch(std::vector<BatchTime> const& times) {
  if (times.empty()) detail::refuse("fastest_batch", "times must be at least one", "none");
  const auto least = std::min_element(times.begin(), times.end(),
                                      [](BatchTime const& a, BatchTime const& b) { return a.seconds < b.seconds; });
  return std::find_if(times.begin(), times.end(),
                      [&](BatchTime const& time) { return time.seconds <= 1.02 * least->seconds; })
      ->batch;
}

}  // namespace tstitch
