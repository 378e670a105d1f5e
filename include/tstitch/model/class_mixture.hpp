/// @file
/// Classes between two classes, as labels that any run takes.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../tensor/host_tensor.hpp"
#include "network_wrapper.hpp"

namespace tstitch {

/// A class between two: what a network makes of it is (1 - share) of what it makes of the first and share of what it
/// makes of the second, as concepts are composed (Liu et al. 2022, arXiv 2206.01714, Eq. 11, without the part that
/// guidance adds). Networks have no more than these outputs to say of it: the table of embeddings is inside of them.
struct ClassMixture {
  std::int64_t first = 0, second = 0;  ///< labels
  double share = 0.5;                  ///< of the second, in [0, 1]
};

/// A network with classes between its classes. In the half of guidance that is without the condition nothing changes.
///
/// A row of such a class costs two rows of the network. The other rows have the bits that they have without this, as
/// the first evaluation is of all rows; the second is of the rows of such classes alone. Forecasts work: each of the
/// two evaluations keeps what it needs.
class ClassMixtures : public NetworkWrapper<ClassMixtures> {
 public:
  /// @param inner takes labels
  /// @param mixtures the labels that they get begin behind those of the network, at `first_label`
  /// @throws std::invalid_argument for a network without classes, a class that it does not have, and another share
  ClassMixtures(Network inner, std::vector<ClassMixture> mixtures)
      : NetworkWrapper(std::move(inner)),
        mixtures_(std::move(mixtures)),
        first_label_(first_label(this->inner().info())) {
    NetworkInfo const& info = this->inner().info();
    const std::string place = "ClassMixtures of '" + detail::printable(info.name) + "'";
    if (info.num_classes == 0) detail::refuse(place, "the network must have classes", double(info.num_classes));
    for (ClassMixture const& each : mixtures_) {
      for (const std::int64_t label : {each.first, each.second}) {
        if (label >= 0 && label < info.num_classes) continue;
        detail::refuse(place, "classes must be in [0, " + std::to_string(info.num_classes - 1) + "]", double(label));
      }
      if (!(each.share >= 0 && each.share <= 1)) detail::refuse(place, "share must be in [0, 1]", each.share);
    }
  }

  /// The label of mixture 0, from which on the others follow: behind the classes and the null class.
  static std::int64_t first_label(NetworkInfo const& info) {
    return std::max(info.num_classes, info.null_class.value_or(-1) + 1);
  }

  /// The network, which says that it has so many more classes.
  Network network() const {
    NetworkInfo info = inner().info();
    info.num_classes = first_label_ + std::int64_t(mixtures_.size());
    if (!info.class_names.empty()) {
      std::vector<std::string> names = info.class_names;
      names.resize(std::size_t(first_label_));  // none of the null class
      for (ClassMixture const& each : mixtures_) {
        names.push_back(info.class_names[std::size_t(each.first)] + " to " +
                        info.class_names[std::size_t(each.second)] + ", " + detail::text(each.share));
      }
      info.class_names = std::move(names);
    }
    return Network(*this, std::move(info), inner().device());
  }

  void prepare(std::span<const double> timesteps, Condition const& condition) const {
    Condition all = condition;
    const std::vector<std::int64_t> labels = on_host(condition);
    all.host_labels.clear();
    for (const std::int64_t label : labels) {
      ClassMixture const* const mixture = mixture_of(label);
      all.host_labels.push_back(mixture ? mixture->first : label);
      if (mixture) all.host_labels.push_back(mixture->second);
    }
    // Those of guidance and their null class; other tensors may no longer have the rows of the labels.
    if (condition.labels.defined()) all.labels = detail::to_device(all.host_labels, condition.labels.device());
    inner().prepare(timesteps, all);
  }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, Condition const& condition,
                        Evaluation const& evaluation) const {
    const std::vector<std::int64_t> labels = on_host(condition);
    std::vector<std::int64_t> firsts = labels, seconds, rows;
    std::vector<double> shares;
    for (std::size_t row = 0; row < labels.size(); ++row) {
      ClassMixture const* const mixture = mixture_of(labels[row]);
      if (!mixture) continue;
      firsts[row] = mixture->first;
      seconds.push_back(mixture->second);
      rows.push_back(std::int64_t(row));
      shares.push_back(mixture->share);
    }
    if (rows.empty()) return inner()(x, t, condition, evaluation);
    Evaluation of_first = evaluation, of_second = evaluation;
    of_second.both_halves = false;
    if (evaluation.memory) {
      Memories& memories = evaluation.memory->as<Memories>();
      of_first.memory = &memories.first;
      of_second.memory = &memories.second;
    }
    Condition first = condition;
    first.labels = detail::to_device(firsts, condition.labels.device());
    first.host_labels = firsts;
    const at::Tensor output = inner()(x, t, first, of_first);

    const at::Tensor where = detail::to_device(rows, condition.labels.device());
    const auto rows_of = [&](at::Tensor const& all) { return all.index_select(0, where); };
    Condition second{.labels = detail::to_device(seconds, condition.labels.device()), .host_labels = seconds};
    for (auto const& [name, tensor] : condition.tensors) second.tensors.emplace_back(name, rows_of(tensor));
    const std::int64_t n = x.size(0);  // half of the labels where x comes twice
    std::vector<std::int64_t> of_x;
    for (const std::int64_t row : rows) of_x.push_back(row % n);
    const at::Tensor other = inner()(x.index_select(0, detail::to_device(of_x, x.device())),
                                     t.defined() ? rows_of(t) : t, second, of_second);
    std::vector<std::int64_t> sizes(std::size_t(output.dim()), 1);
    sizes[0] = std::int64_t(rows.size());
    const at::Tensor weights = detail::host_tensor(sizes, at::kFloat, output.is_cuda());
    std::copy(shares.begin(), shares.end(), weights.mutable_data_ptr<float>());
    const at::Tensor share = weights.to(output.device(), output.scalar_type(), /*non_blocking=*/output.is_cuda());
    return output.index_copy(0, where, rows_of(output).lerp(other, share));
  }

  /// What the network inside keeps when it is asked twice.
  struct Memories {
    Memory first, second;
  };

 private:
  ClassMixture const* mixture_of(std::int64_t label) const {
    const std::int64_t index = label - first_label_;
    return index >= 0 && index < std::int64_t(mixtures_.size()) ? &mixtures_[std::size_t(index)] : nullptr;
  }

  /// Where the host does not know them it waits for the device.
  static std::vector<std::int64_t> on_host(Condition const& condition) {
    if (!condition.host_labels.empty() || !condition.labels.defined()) return condition.host_labels;
    const at::Tensor labels = condition.labels.cpu().contiguous();
    std::int64_t const* const begin = labels.const_data_ptr<std::int64_t>();
    return {begin, begin + labels.numel()};
  }

  std::vector<ClassMixture> mixtures_;
  std::int64_t first_label_;
};

}  // namespace tstitch
