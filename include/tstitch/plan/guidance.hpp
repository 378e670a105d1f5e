/// @file
/// How much guidance a run has, and when. Includes no torch; what it does to predictions is in model/guidance.hpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "forecast.hpp"
#include "step.hpp"

namespace tstitch {

/// Guidance scales: one for all networks (`1.5`) or one for each (`{1.5, 4.0}`).
class GuidanceScale {
 public:
  GuidanceScale(double scale = 1.0) : each_{scale} {}  // NOLINT: conversion is the purpose
  GuidanceScale(std::initializer_list<double> each) : each_(each) {}
  explicit GuidanceScale(std::vector<double> each) : each_(std::move(each)) {}

  /// @throws std::out_of_range when there are several scales but none for the network
  double of(std::size_t network) const { return each_.size() == 1 ? each_[0] : each_.at(network); }

  /// One value, or as many as there are networks.
  std::vector<double> const& values() const { return each_; }

 private:
  std::vector<double> each_;
};

/// Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, Algorithm 1), which keeps high scales from
/// oversaturating: with c and u the two predictions of x_0, x_0 = c + (scale - 1) update, and the update is made of
/// c - u in three steps, for each image. With eta 1 and no threshold or momentum this is guidance as it was.
struct ProjectedGuidance {
  /// In [0, 1]: how much is left of the part of the update that is parallel to c.
  double eta = 0;
  /// Above 0, r there: the largest norm of an update before it is projected; longer ones are shortened to it.
  double norm_threshold = std::numeric_limits<double>::infinity();
  /// Inside (-1, 1), beta there: what c - u receives of the sum of earlier ones, before all else; below 0 in the paper.
  /// All evaluations of a step see the sum as it was before the step, and the first one's is remembered; a step that is
  /// not guided leaves it as it is.
  double momentum = 0;

  /// @throws std::invalid_argument
  void validate() const {
    if (!(eta >= 0 && eta <= 1)) detail::refuse("ProjectedGuidance", "eta must be in [0, 1]", eta);
    if (!(norm_threshold > 0)) {
      detail::refuse("ProjectedGuidance", "norm_threshold must be above 0", norm_threshold);
    }
    if (!(momentum > -1 && momentum < 1)) {
      detail::refuse("ProjectedGuidance", "momentum must be inside (-1, 1)", momentum);
    }
  }
};

/// Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): u + scale (c - u), with c and u the conditional
/// and the unconditional output. 1 means no guidance: then the unconditional half is not computed.
///
/// From 1 up this is the scale of the published code; the papers' own "w" or "s" is often scale - 1. Below 1 it is the
/// formula still: 0 is the unconditional output, the same for every condition, and less leads away from the condition.
/// Much published code, diffusers among it, takes every scale up to 1 for "off", and cards of distilled networks write
/// that as 0: off is 1 here.
struct Guidance {
  GuidanceScale scale = 1.0;
  /// The share of the steps at which guidance begins and ends (arXiv 2404.07724); rounded as ratios are.
  double begin = 0.0;
  double end = 1.0;
  /// Only the first so many channels are guided, the others keep the conditional output; 0 means all. The pictures of
  /// the official DiT code were made with 3 of 4.
  int channels = 0;
  /// In [0, 1], phi of Lin et al. 2024 (arXiv 2305.08891, Eq. 14 to 16): the guided output is brought this much of the
  /// way to the standard deviation of the conditional one, for each image over its guided channels. They use 0.7.
  double rescale = 0;
  std::optional<ProjectedGuidance> projected = {};
  /// Autoguidance (Karras et al. 2024, arXiv 2406.02507): u is the conditional prediction of this network, a worse one
  /// of the run, in place of the unconditional one; guided in x_0. Needs no null class, and costs an evaluation of the
  /// guide with each of the network. In steps that are the guide's own, guidance is classifier-free; the scales {1, 2}
  /// leave it out there where the guide is network 0.
  std::optional<std::size_t> guide_network = {};
  /// When what guidance adds, the difference of the two outputs (with guide_network, of the two x_0), is not computed
  /// but extrapolated from the last steps that computed it: the network then runs with the condition alone, at half of
  /// the rows. Any forecast schedule; begins anew when another network takes over and after steps without guidance.
  Forecast forecast = {};

  /// The scale at a step: 1 outside of the interval.
  double at(Step const& step, std::size_t network) const {
    const bool inside = step.index >= share_of_steps("Guidance", "begin", begin, step.count) &&
                        step.index < share_of_steps("Guidance", "end", end, step.count);
    return inside ? scale.of(network) : 1.0;
  }

  /// Whether the guide network is asked too when this network takes this step.
  bool uses_guide(Step const& step, std::size_t network) const {
    return guide_network && *guide_network != network && at(step, network) != 1;
  }

  /// What guides this network in a step.
  GuidedBy by(Step const& step, std::size_t network) const {
    if (at(step, network) == 1) return GuidedBy::nothing;
    return uses_guide(step, network) ? GuidedBy::guide : GuidedBy::null_half;
  }

  /// @throws std::invalid_argument
  void validate() const {
    if (scale.values().empty()) detail::refuse("Guidance", "scale needs at least one value", 0);
    for (double value : scale.values()) {
      if (!std::isfinite(value)) detail::refuse("Guidance", "scale must be a finite number", value);
    }
    share_of_steps("Guidance", "begin", begin, 1);
    share_of_steps("Guidance", "end", end, 1);
    if (begin > end) detail::refuse("Guidance", "begin must not be above end (" + detail::text(end) + ")", begin);
    if (channels < 0) detail::refuse("Guidance", "channels must not be negative", channels);
    if (!(rescale >= 0 && rescale <= 1)) detail::refuse("Guidance", "rescale must be in [0, 1]", rescale);
    if (rescale > 0 && (projected || guide_network)) {
      detail::refuse("Guidance", "rescale, for outputs, must be 0 with projected or guide_network, which guide x_0",
                     rescale);
    }
    if (projected) projected->validate();
  }

  /// The same, for a run of so many networks.
  void validate(std::size_t networks) const {
    validate();
    if (const std::size_t scales = scale.values().size(); scales > 1 && scales != networks) {
      detail::refuse("Guidance",
                     "scale must be one value, or one for each of the " + std::to_string(networks) + " networks",
                     std::to_string(scales) + " values");
    }
    if (guide_network && *guide_network >= networks) {
      detail::refuse("Guidance",
                     "guide_network must be the index of one of the " + std::to_string(networks) + " networks",
                     std::to_string(*guide_network));
    }
  }
};

}  // namespace tstitch
