/// @file
/// The parts of a run in flight as a pickle.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/digest.hpp"
#include "../base/error.hpp"
#include "../model/class_mixture.hpp"
#include "../model/feature_memory.hpp"
#include "../sampler/state_members.hpp"
#include "../sampler/trajectory.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/torch_noise.hpp"
#include "pickle_writer.hpp"
#include "trajectory_facts.hpp"

namespace tstitch::detail {

/// Writes what a run is made of.
class TrajectoryWriter {
 public:
  PickleWriter pickle = {};

  void key(char const* name) { pickle.text(name); }

  void field(char const* name, std::string const& text) { key(name), pickle.text(text); }
  void field(char const* name, char const* text) { key(name), pickle.text(text); }
  void field(char const* name, double value) { key(name), pickle.real(value); }
  void field(char const* name, bool value) { key(name), pickle.boolean(value); }
  template <class Whole>
  requires std::is_integral_v<Whole>
  void field(char const* name, Whole value) { key(name), pickle.number(std::int64_t(value)); }
  void field(char const* name, at::Tensor const& tensor) { key(name), write(tensor); }
  void fingerprint(char const* name, std::uint64_t value) { key(name), pickle.text(hexadecimal(value)); }
  template <class Values>
  void list(char const* name, Values const& values) {
    key(name);
    pickle.begin_list();
    for (auto const& each : values) write(each);
    pickle.end_list();
  }
  template <class Write>
  void dict(char const* name, Write write_fields) {
    key(name);
    in_dict(write_fields);
  }
  template <class Write>
  void in_dict(Write write_fields) {
    pickle.begin_dict();
    write_fields();
    pickle.end_dict();
  }

  void write(double value) { pickle.real(value); }
  void write(int value) { pickle.number(value); }
  void write(std::int64_t value) { pickle.number(value); }
  void write(std::uint64_t value) { pickle.number(std::int64_t(value)); }
  void write(std::string const& text) { pickle.text(text); }

  /// None where it is undefined.
  void write(at::Tensor const& given) {
    if (!given.defined()) return pickle.none();
    at::Tensor dense = given.detach();
    const std::vector<std::int64_t> sizes = dense.sizes().vec(), strides = dense.strides().vec();
    for (std::int64_t d = 0; d < dense.dim(); ++d) {
      if (dense.stride(d) == 0 && dense.size(d) > 1) dense = dense.narrow(d, 0, 1);  // the same again and again
    }
    if (!dense.is_non_overlapping_and_dense() || dense.is_conj() || dense.is_neg()) {
      return pickle.tensor(given.detach().cpu().resolve_conj().resolve_neg().contiguous());
    }
    at::Tensor& host =
        on_host_[{dense.const_data_ptr(), dense.scalar_type(), dense.strides().vec(), dense.sizes().vec()}];
    if (!host.defined()) host = dense.cpu();
    pickle.tensor(host, sizes, strides);
  }

  void write(NoiseLevel const& level) {
    pickle.begin_list();
    write(level.alpha), write(level.sigma);
    pickle.end_list();
  }

  void write(KeptSteps::Kept const& kept) {
    in_dict([&] {
      field("step", kept.step);
      field("number", kept.number);
      field("tensor", kept.tensor);
    });
  }

  void write(Past const& past) {
    in_dict([&] {
      Step const& step = past.step;
      field("index", step.index);
      field("count", step.count);
      field("t", step.t);
      key("from"), write(step.from);
      key("to"), write(step.to);
      field("t_to", step.t_to);
      field("network", past.network);
      field("x", past.x);
      field("x_0", past.x_0);
    });
  }

  void write(std::pair<std::string, at::Tensor> const& named) {
    in_dict([&] {
      field("name", named.first);
      field("tensor", named.second);
    });
  }

  void write(Fact const& fact) {
    in_dict([&] {
      field("name", fact.name);
      list("values", fact.values);
    });
  }

  void write(Condition const& condition) {
    std::vector<std::int64_t> labels = condition.host_labels;
    if (labels.empty() && condition.labels.defined()) {
      const at::Tensor host = condition.labels.cpu().contiguous();
      labels.assign(values_of<std::int64_t>(host), values_of<std::int64_t>(host) + host.numel());
    }
    in_dict([&] {
      field("has_labels", condition.labels.defined());
      list("labels", labels);
      list("tensors", condition.tensors);
    });
  }

  void write(Guidance const& guidance) {
    in_dict([&] {
      list("scale", guidance.scale.values());
      field("begin", guidance.begin);
      field("end", guidance.end);
      field("channels", guidance.channels);
      field("rescale", guidance.rescale);
      key("projected");
      if (auto const& projected = guidance.projected) {
        in_dict([&] {
          field("eta", projected->eta);
          field("norm_threshold", projected->norm_threshold);
          field("momentum", projected->momentum);
        });
      } else {
        pickle.none();
      }
      key("guide_network");
      guidance.guide_network ? pickle.number(std::int64_t(*guidance.guide_network)) : pickle.none();
      dict("forecast", [&] { forecast(guidance.forecast); });
    });
  }

  void forecast(Forecast const& given) {
    if (auto const* every = given.find<ForecastEvery>()) {
      field("kind", "every");
      field("every", every->every);
      field("order", every->order);
      field("warm_up", every->warm_up);
      field("last", every->last);
      field("first_network", every->first_network);
    } else if (auto const* table = given.find<ForecastTable>()) {
      field("kind", "table");
      list("forecast", std::vector<int>(table->forecast.begin(), table->forecast.end()));
      field("order", table->order);
      field("first_network", table->first_network);
    } else {
      field("kind", given ? "own" : "none");
    }
  }

  void write(ForecastHistory const& history) {
    ForecastHistory::State const& state = history.state();
    in_dict([&] {
      key("network");
      state.network ? pickle.number(std::int64_t(*state.network)) : pickle.none();
      fingerprint("rule", state.rule);
      field("evaluations", state.evaluations);
      field("taken", state.taken);
      field("guided_taken", state.guided_taken);
      field("guided", int(state.guided));
      list("conditional", state.conditional);
      list("unconditional", state.unconditional);
      list("differences", state.differences);
    });
  }

  /// @param name of the network, for the message
  /// @throws std::invalid_argument
  void memory(Memory const& memory, std::string const& name) {
    if (memory.empty()) return pickle.none();
    if (auto const* features = memory.find<FeatureMemory>()) {
      return in_dict([&] {
        field("kind", "features");
        list("conditional", features->state().conditional.kept());
        list("unconditional", features->state().unconditional.kept());
        list("both", features->state().both.kept());
      });
    }
    if (auto const* mixed = memory.find<ClassMixtures::Memories>()) {
      return in_dict([&] {
        field("kind", "class mixtures");
        key("first"), this->memory(mixed->first, name);
        key("second"), this->memory(mixed->second, name);
      });
    }
    refuse("save_trajectory", "what a network keeps must be a FeatureMemory", "a value of another type of " + name);
  }

  /// @throws std::invalid_argument
  void noise_source(NoiseSource const& source) {
    auto const* const function = source.target<decltype(&tstitch::noise)>();
    if (function && *function == &tstitch::noise) {
      field("kind", "philox");
    } else if (auto const* torch = source.target<TorchNoise>()) {
      field("kind", "torch");
      fingerprint("seed", torch->seed());
      field("rows_per_image", torch->order().rows_per_image);
      field("initial_first", torch->order().initial_first);
    } else {
      field("kind", "own");
    }
  }

 private:
  // Of tensors of a GPU, so that what is there once is in the file once.
  std::map<std::tuple<void const*, at::ScalarType, std::vector<std::int64_t>, std::vector<std::int64_t>>, at::Tensor>
      on_host_ = {};
};

/// Writes a State.
class StateWriter final : public StateMembers {
 public:
  StateWriter(TrajectoryWriter& writer, at::Device device) : writer_(writer), device_(device) {}

  void see(char const* name, std::vector<double>& values) override { writer_.list(name, values); }
  void see(char const* name, std::vector<std::int64_t>& values) override { writer_.list(name, values); }
  void see(char const* name, std::vector<at::Tensor>& values) override {
    writer_.list(name, values);
    std::vector<int> stay;  // on the host, whichever the device of x
    for (at::Tensor const& each : values) stay.push_back(each.defined() && each.is_cpu() && !device_.is_cpu());
    writer_.list((std::string(name) + " on the host").c_str(), stay);
  }

 private:
  TrajectoryWriter& writer_;
  at::Device device_;
};

}  // namespace tstitch::detail
