/// @file
/// The parts of a run in flight out of a pickle.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/class_mixture.hpp"
#include "../model/feature_memory.hpp"
#include "../sampler/state_members.hpp"
#include "../sampler/trajectory.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/torch_noise.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "parallel_file.hpp"
#include "pickle.hpp"
#include "storage_reader.hpp"
#include "trajectory_facts.hpp"

namespace tstitch::detail {

inline constexpr FileKind trajectory_kind{"load_trajectory", "a file of save_trajectory"};

/// Reads what a run is made of. Throws std::runtime_error, which `reading` completes.
class TrajectoryReader {
 public:
  using Kind = Pickle::Kind;
  using Value = Pickle::Value;

  explicit TrajectoryReader(std::string const& path)
      : archive_(open_file(trajectory_kind, path)), pickle_(archive_, "data", /*classes=*/false), storages_(archive_) {
    require(root().kind == Kind::dict, "another value than a dict");
  }

  Value const& root() const { return pickle_.root(); }

  /// Where tensors are to be.
  void set_device(at::Device device) {
    device_ = device;
    blocks_.clear();
  }

  static void require(bool holds, std::string const& got) {
    if (!holds) throw std::runtime_error(got);
  }

  Value const* find(Value const& dict, std::string_view name) const {
    require(dict.kind == Kind::dict, "another value than a dict");
    for (std::size_t k = 0; k < dict.children.size(); k += 2) {
      Value const& key = pickle_.value(dict.children[k]);
      if (key.kind == Kind::text && key.text == name) return &pickle_.value(dict.children[k + 1]);
    }
    return nullptr;
  }

  Value const& at(Value const& dict, std::string_view name) const {
    Value const* const value = find(dict, name);
    require(value != nullptr, "a run without '" + std::string(name) + "'");
    return *value;
  }

  Value const& at(Value const& dict, std::string_view name, Kind kind) const {
    Value const& value = at(dict, name);
    require(value.kind == kind, "a run whose '" + std::string(name) + "' is " + detail::text(value.kind));
    return value;
  }

  std::string text(Value const& dict, std::string_view name) const {
    return std::string(at(dict, name, Kind::text).text);
  }
  double real(Value const& dict, std::string_view name) const { return real_of(at(dict, name, Kind::real)); }
  bool boolean(Value const& dict, std::string_view name) const { return at(dict, name, Kind::boolean).number != 0; }

  /// In [least, most].
  template <class Whole = int>
  Whole whole(Value const& dict, std::string_view name, std::int64_t least = 0,
              std::int64_t most = std::numeric_limits<int>::max()) const {
    const std::int64_t number = at(dict, name, Kind::integer).number;
    require(number >= least && number <= most, "a run whose '" + std::string(name) + "' is " + std::to_string(number));
    return Whole(number);
  }

  std::uint64_t fingerprint(Value const& dict, std::string_view name) const {
    const std::string digits = text(dict, name);
    require(digits.size() == 16 && digits.find_first_not_of("0123456789abcdef") == std::string::npos,
            "a run whose '" + std::string(name) + "' is '" + printable(digits) + "'");
    return std::stoull(digits, nullptr, 16);
  }

  /// @param read makes one of each value
  template <class Read>
  auto list(Value const& dict, std::string_view name, Read read) const {
    std::vector<decltype(read(dict))> values;
    for (const std::uint32_t index : at(dict, name, Kind::list).children) values.push_back(read(pickle_.value(index)));
    return values;
  }

  std::vector<double> reals(Value const& dict, std::string_view name) const {
    return list(dict, name, [](Value const& value) { return real_of(value); });
  }
  std::vector<std::int64_t> integers(Value const& dict, std::string_view name) const {
    return list(dict, name, [](Value const& value) {
      require(value.kind == Kind::integer, "a number that is none");
      return value.number;
    });
  }
  std::vector<int> steps(Value const& dict, std::string_view name) const {
    std::vector<int> found;
    for (const std::int64_t each : integers(dict, name)) {
      require(each >= 0 && each <= std::numeric_limits<int>::max(), "a step that is none");
      found.push_back(int(each));
    }
    return found;
  }
  std::vector<std::string> texts(Value const& dict, std::string_view name) const {
    return list(dict, name, [](Value const& value) {
      require(value.kind == Kind::text, "a text that is none");
      return std::string(value.text);
    });
  }

  static double real_of(Value const& value) {
    require(value.kind == Kind::real, "a number that is none");
    return std::bit_cast<double>(value.number);
  }

  /// On the device; undefined for none.
  at::Tensor tensor_of(Value const& value, bool on_host = false) {
    if (value.kind == Kind::none) return {};
    require(value.kind == Kind::tensor, std::string("a tensor that is ") + detail::text(value.kind));
    PickledTensor const& pickled = pickle_.tensor(value);
    PickledTensor dense = pickled;
    for (std::size_t d = 0; d < dense.sizes.size(); ++d) {
      if (dense.strides[d] == 0 && dense.sizes[d] > 1) dense.sizes[d] = 1;
    }
    const at::Tensor host = storages_(dense);
    // So that what is made of it takes no more memory than the file has.
    require(dense.offset == 0 && host.numel() == dense.elements && host.is_non_overlapping_and_dense(),
            "a tensor that is no block of memory");
    if (on_host || device_.is_cpu()) return host.as_strided(pickled.sizes, pickled.strides, 0);
    at::Tensor& block = blocks_[{pickled.record, pickled.type}];
    if (!block.defined()) {
      dense.sizes = {dense.elements};
      dense.strides = {1};
      block = storages_(dense).to(device_);
    }
    return block.as_strided(pickled.sizes, pickled.strides, 0);
  }

  at::Tensor tensor(Value const& dict, std::string_view name) { return tensor_of(at(dict, name)); }

  NoiseLevel level(Value const& dict, std::string_view name) const {
    const std::vector<double> both = reals(dict, name);
    require(both.size() == 2, "a noise level of other than two numbers");
    return {both[0], both[1]};
  }

  std::vector<Fact> facts(Value const& dict, std::string_view name) const {
    return list(dict, name, [&](Value const& fact) { return Fact{text(fact, "name"), texts(fact, "values")}; });
  }

  std::vector<std::pair<std::string, at::Tensor>> named_tensors(Value const& dict, bool on_host) {
    return list(dict, "tensors", [&](Value const& named) {
      at::Tensor tensor = tensor_of(at(named, "tensor"), on_host);
      require(tensor.defined(), "a tensor without numbers");
      return std::pair(text(named, "name"), std::move(tensor));
    });
  }

  KeptSteps kept(Value const& dict, std::string_view name) {
    return KeptSteps(list(dict, name, [&](Value const& each) {
      return KeptSteps::Kept{whole(each, "step"), whole(each, "number"), tensor(each, "tensor")};
    }));
  }

  Past past(Value const& each) {
    return {.step = {.index = whole(each, "index"),
                     .count = whole(each, "count"),
                     .t = real(each, "t"),
                     .from = level(each, "from"),
                     .to = level(each, "to"),
                     .t_to = real(each, "t_to")},
            .network = whole<std::size_t>(each, "network"),
            .x = tensor(each, "x"),
            .x_0 = tensor(each, "x_0")};
  }

  /// @param rows of its labels and tensors, where there are any
  Condition condition(Value const& dict, std::int64_t rows) {
    Condition made;
    made.host_labels = integers(dict, "labels");
    if (boolean(dict, "has_labels")) {
      require(std::int64_t(made.host_labels.size()) == rows, "labels for another number of rows");
      made.labels = to_device(made.host_labels, device_);
    }
    made.tensors = named_tensors(dict, false);
    for (auto const& [name, tensor] : made.tensors) {
      require(tensor.dim() > 0 && tensor.size(0) == rows, "a condition '" + printable(name) + "' of other rows");
    }
    return made;
  }

  Forecast forecast(Value const& dict, Forecast const& own) const {
    const std::string kind = text(dict, "kind");
    if (kind == "none") return {};
    if (kind == "every") {
      return ForecastEvery{.every = whole(dict, "every"),
                           .order = whole(dict, "order"),
                           .warm_up = whole(dict, "warm_up"),
                           .last = boolean(dict, "last"),
                           .first_network = whole<std::size_t>(dict, "first_network")};
    }
    if (kind == "table") {
      ForecastTable table{
          .forecast = {}, .order = whole(dict, "order"), .first_network = whole<std::size_t>(dict, "first_network")};
      for (const std::int64_t each : integers(dict, "forecast")) table.forecast.push_back(each != 0);
      return table;
    }
    require(kind == "own", "a forecast of the kind '" + printable(kind) + "'");
    return own;
  }

  Guidance guidance(Value const& dict, Forecast const& own) const {
    Guidance made;
    made.scale = GuidanceScale(reals(dict, "scale"));
    made.begin = real(dict, "begin");
    made.end = real(dict, "end");
    made.channels = whole(dict, "channels");
    made.rescale = real(dict, "rescale");
    if (Value const& projected = at(dict, "projected"); projected.kind != Kind::none) {
      made.projected =
          ProjectedGuidance{real(projected, "eta"), real(projected, "norm_threshold"), real(projected, "momentum")};
    }
    if (at(dict, "guide_network").kind != Kind::none) made.guide_network = whole<std::size_t>(dict, "guide_network");
    made.forecast = forecast(at(dict, "forecast"), own);
    return made;
  }

  ForecastHistory history(Value const& dict) const {
    ForecastHistory::State state;
    if (at(dict, "network").kind != Kind::none) state.network = whole<std::size_t>(dict, "network");
    state.rule = fingerprint(dict, "rule");
    state.evaluations = whole(dict, "evaluations");
    state.taken = whole(dict, "taken");
    state.guided_taken = whole(dict, "guided_taken");
    state.guided = GuidedBy(whole(dict, "guided", 0, std::int64_t(GuidedBy::guide)));
    state.conditional = steps(dict, "conditional");
    state.unconditional = steps(dict, "unconditional");
    state.differences = steps(dict, "differences");
    return ForecastHistory(std::move(state));
  }

  Memory memory(Value const& value) {
    Memory made;
    if (value.kind == Kind::none) return made;
    const std::string kind = text(value, "kind");
    if (kind == "features") {
      made.as<FeatureMemory>() = FeatureMemory({.conditional = kept(value, "conditional"),
                                                .unconditional = kept(value, "unconditional"),
                                                .both = kept(value, "both")});
    } else {
      require(kind == "class mixtures", "what a network keeps of the kind '" + printable(kind) + "'");
      auto& both = made.as<ClassMixtures::Memories>();
      both.first = memory(at(value, "first"));
      both.second = memory(at(value, "second"));
    }
    return made;
  }

  NoiseSource noise_source(Value const& dict, NoiseSource const& own) const {
    const std::string kind = text(dict, "kind");
    if (kind == "philox") return tstitch::noise;
    if (kind == "torch") {
      return TorchNoise(fingerprint(dict, "seed"), {.rows_per_image = whole(dict, "rows_per_image", 1, 16),
                                                    .initial_first = boolean(dict, "initial_first")});
    }
    require(kind == "own", "noise of the kind '" + printable(kind) + "'");
    return own;
  }

 private:
  Archive archive_;
  Pickle pickle_;
  StorageReader storages_;
  at::Device device_ = at::kCPU;
  std::map<std::pair<std::string, at::ScalarType>, at::Tensor> blocks_ = {};  // on the device
};

/// Fills a State in.
class StateReader final : public StateMembers {
 public:
  StateReader(TrajectoryReader& reader, TrajectoryReader::Value const& dict) : reader_(reader), dict_(dict) {}

  void see(char const* name, std::vector<double>& values) override { values = reader_.reals(dict_, name); }
  void see(char const* name, std::vector<std::int64_t>& values) override { values = reader_.integers(dict_, name); }
  void see(char const* name, std::vector<at::Tensor>& values) override {
    const std::vector<std::int64_t> stay = reader_.integers(dict_, std::string(name) + " on the host");
    std::size_t k = 0;
    values = reader_.list(dict_, name, [&](TrajectoryReader::Value const& value) {
      TrajectoryReader::require(k < stay.size(), "the State of an update rule that is not whole");
      return reader_.tensor_of(value, stay[k++] != 0);
    });
  }

 private:
  TrajectoryReader& reader_;
  TrajectoryReader::Value const& dict_;
};

}  // namespace tstitch::detail
