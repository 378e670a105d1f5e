/// @file
/// Numbers that are the same for all channels of a latent, or one for each.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/host_tensor.hpp"

namespace tstitch {

/// One number for all channels (`0.18215`) or one for each (`{0.35, 0.69}`).
class PerChannel {
 public:
  PerChannel(double all = 0) : each_{all} {}  // NOLINT: conversion is the purpose
  PerChannel(std::initializer_list<double> each) : each_(each) {}
  explicit PerChannel(std::vector<double> each) : each_(std::move(each)) {}

  /// One value, or as many as there are channels.
  std::vector<double> const& values() const { return each_; }

  /// @throws std::out_of_range for a channel that there is not
  double of(std::size_t channel) const { return each_.size() == 1 ? each_[0] : each_.at(channel); }

  /// Whether they are the same for each channel, however they are written.
  friend bool operator==(PerChannel const& a, PerChannel const& b) {
    std::vector<double> const &fewer = a.each_.size() < b.each_.size() ? a.each_ : b.each_,
                              &more = a.each_.size() < b.each_.size() ? b.each_ : a.each_;
    if (fewer.size() != 1) return fewer == more;
    return std::all_of(more.begin(), more.end(), [&](double each) { return each == fewer[0]; });
  }

 private:
  std::vector<double> each_;
};

namespace detail {

/// What `of` gives for the numbers of each channel.
/// @throws std::invalid_argument where one has another number of channels than the other
template <class Function>
PerChannel each_channel(PerChannel const& a, PerChannel const& b, Function of) {
  const std::size_t many = std::max(a.values().size(), b.values().size());
  for (PerChannel const* const one : {&a, &b}) {
    if (const std::size_t size = one->values().size(); size != 1 && size != many) {
      refuse("PerChannel", "must be one number or " + std::to_string(many), std::to_string(size));
    }
  }
  std::vector<double> values;
  for (std::size_t i = 0; i < many; ++i) values.push_back(of(a.of(i), b.of(i)));
  return PerChannel(std::move(values));
}

template <class Function>
PerChannel each_channel(PerChannel const& a, Function of) {
  return each_channel(a, a, [&](double value, double) { return of(value); });
}

/// @param channels 0 where it is not known how many there are
/// @throws std::invalid_argument for numbers that are neither one nor one for each channel
inline void require_channels(std::string const& place, std::string const& what, PerChannel const& a,
                             std::int64_t channels) {
  const std::size_t numbers = a.values().size();
  if (numbers == 1 || (numbers > 1 && (channels == 0 || std::int64_t(numbers) == channels))) return;
  refuse(place,
         what + " must be one number or one for each" +
             (channels ? " of the " + std::to_string(channels) + " channels" : " channel"),
         std::to_string(numbers));
}

/// [C, 1, ...] for x of [n, C, ...], on its device without a wait; float32, or float64 where x is.
inline at::Tensor beside_channels(PerChannel const& a, at::Tensor const& x) {
  std::vector<std::int64_t> sizes(std::size_t(std::max<std::int64_t>(x.dim() - 1, 1)), 1);
  sizes[0] = std::int64_t(a.values().size());
  const at::Tensor numbers = host_tensor(sizes, at::kDouble, x.is_cuda());
  std::copy(a.values().begin(), a.values().end(), numbers.mutable_data_ptr<double>());
  const at::ScalarType type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return numbers.to(x.device(), type, /*non_blocking=*/x.is_cuda());
}

/// x [n, C, ...] times these, a tensor of its own.
inline at::Tensor times(at::Tensor const& x, PerChannel const& a) {
  if (a.values().size() == 1) return x.mul(a.of(0));
  return x.mul(beside_channels(a, x)).to(x.scalar_type());
}

/// Adds these to x [n, C, ...] in place.
inline void add_to(at::Tensor const& x, PerChannel const& a) {
  a.values().size() == 1 ? x.add_(a.of(0)) : x.add_(beside_channels(a, x));
}

/// Divides x [n, C, ...] by these in place.
inline void divide_by(at::Tensor const& x, PerChannel const& a) {
  a.values().size() == 1 ? x.div_(a.of(0)) : x.div_(beside_channels(a, x));
}

inline PerChannel negative(PerChannel const& a) {
  return each_channel(a, [](double value) { return -value; });
}

}  // namespace detail

namespace words {

/// "0.18215", or "[0.35, 0.69]"; of many the first, and how many more there are.
inline std::string text(PerChannel const& numbers) {
  constexpr std::size_t most = 4;
  std::vector<double> const& all = numbers.values();
  if (all.size() == 1) return text(all[0]);
  std::string list = "[";
  for (std::size_t i = 0; i < std::min(all.size(), most); ++i) list += (i ? ", " : "") + text(all[i]);
  return list + (all.size() > most ? " and " + std::to_string(all.size() - most) + " more]" : "]");
}

/// What x = scale (latent - shift) of one side is where the other's differ: "0.5 and 0.25", "0.5 and 0.25 in channel
/// 3".
/// @param scale, shift of this side
/// @param other_scale, other_shift of the other
inline std::string scale_and_shift(PerChannel const& scale, PerChannel const& shift, PerChannel const& other_scale,
                                   PerChannel const& other_shift, char const* between = " and ") {
  std::size_t channels = 1;
  bool comparable = true;
  for (PerChannel const* const each : {&scale, &shift, &other_scale, &other_shift}) {
    const std::size_t size = each->values().size();
    comparable = comparable && (size == 1 || channels == 1 || size == channels);
    channels = std::max(channels, size);
  }
  for (std::size_t i = 0; comparable && channels > 1 && i < channels; ++i) {
    if (scale.of(i) == other_scale.of(i) && shift.of(i) == other_shift.of(i)) continue;
    return text(scale.of(i)) + between + text(shift.of(i)) + " in channel " + std::to_string(i);
  }
  return text(scale) + between + text(shift);
}

}  // namespace words
}  // namespace tstitch
