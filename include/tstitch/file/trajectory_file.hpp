/// @file
/// Runs in flight as files: a run that is saved, loaded and taken on has the bits of one that was never stopped.
/// Opt-in.
///
/// The file is an archive as torch.save writes it, whose records have checksums, with numbers, texts and tensors in
/// dicts and lists; Python's torch.load shows it. Tensors keep their strides, because some operations round by them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/write_file.hpp"
#include "../sampler/batch.hpp"
#include "../sampler/options.hpp"
#include "../sampler/trajectory.hpp"
#include "../sampler/update_rule.hpp"
#include "file.hpp"
#include "trajectory_facts.hpp"
#include "trajectory_reader.hpp"
#include "trajectory_writer.hpp"

namespace tstitch {

/// What a program keeps with a run.
struct TrajectoryNotes {
  std::string text = {};                                         ///< UTF-8
  std::vector<std::pair<std::string, at::Tensor>> tensors = {};  ///< by name, on the host when they are read
};

/// What a run goes on with that its file does not hold, and what it is compared with.
///
/// A callable of the program's own is not in the file: it is given again where the run had one, and is the same as far
/// as anybody can know. Where the run had none, none is taken.
struct GoOnWith {
  /// One for each network, as they were given to save_trajectory.
  std::vector<std::string> fingerprints = {};
  std::optional<Guidance> guidance = {};          ///< refused where the run has another; without: whichever it has
  NoiseSource noise_source = {};                  ///< where it was neither `noise` nor a TorchNoise
  GradientGuidance::LogDensity log_density = {};  ///< whose scale and place are in the file
  Forecast guidance_forecast = {};                ///< where it was neither a ForecastEvery nor a ForecastTable
};

namespace detail {

inline constexpr char trajectory_format[] = "tstitch trajectory file";
inline constexpr std::int64_t trajectory_version = 1;

/// What a sampler is to those who keep its runs.
struct RunKeeper {
  std::function<Plan(Guidance const&)> plan;
  SamplingOptions const& options;
  RuleView rule;
};

template <class Sampler>
RunKeeper keeper_of(Sampler const& sampler) {
  return {[&sampler](Guidance const& guidance) { return sampler.plan(guidance); }, sampler.options(),
          view_of(sampler.rule())};
}

inline void write_rule_state(TrajectoryWriter& writer, Trajectory const& run, RunKeeper const& by) {
  writer.key("rule_state");
  // A rule without State would forget what another one has left.
  if (run.rule_state.empty() || !by.rule.keeps_state) return writer.pickle.none();
  if (!by.rule.see_state) {
    const std::string name = by.rule.name(by.rule.rule);
    refuse("save_trajectory", "an update rule's State must list its members, which UpdateRule describes",
           name.empty() ? "one that does not, of a rule without a name" : "that of " + name);
  }
  Memory state = run.rule_state;
  writer.in_dict([&] {
    StateWriter members(writer, run.x.device());
    by.rule.see_state(state, members);
  });
}

inline void write_trajectory(TrajectoryWriter& writer, Trajectory const& run, RunKeeper const& by) {
  writer.field("next", run.next);
  writer.field("count", run.count);
  writer.field("first", run.first);
  writer.fingerprint("timesteps", run.timesteps);
  writer.fingerprint("plan", run.plan);
  writer.key("level"), writer.write(run.level);
  writer.field("x", run.x);
  writer.field("x_0", run.x_0);
  writer.list("history", run.history);
  writer.field("momentum", run.momentum);
  write_rule_state(writer, run, by);
  writer.key("memories");
  writer.pickle.begin_list();
  for (std::size_t k = 0; k < run.memories.size(); ++k) {
    writer.memory(run.memories[k], "network " + std::to_string(k));
  }
  writer.pickle.end_list();
  writer.key("forecasts"), writer.write(run.forecasts);
  writer.list("differences", run.differences.kept());
  writer.list("seeds", run.seeds);
  writer.key("conditional"), writer.write(run.condition.conditional);
  writer.key("guided"), writer.write(run.condition.guided);
  writer.key("guidance"), writer.write(run.guidance);
  writer.dict("noise_source", [&] { writer.noise_source(run.noise_source); });
  writer.key("gradient");
  if (run.gradient) {
    writer.in_dict([&] {
      writer.field("scale", run.gradient.scale);
      writer.field("of_x", run.gradient.of == DensityOf::x);
    });
  } else {
    writer.pickle.none();
  }
  writer.dict("inpainting", [&] {
    writer.field("mask", run.inpainting.mask);
    writer.field("image", run.inpainting.image);
    writer.field("noise", run.inpainting.noise);
  });
}

inline void save_trajectory(std::string const& path, RunKeeper const& by, Trajectory const& run,
                            std::vector<std::string> const& fingerprints, TrajectoryNotes const& notes, Sync sync) {
  constexpr auto place = "save_trajectory";
  if (!run.x.defined()) refuse(place, "the trajectory must be one that a sampler has begun", "one without x");
  const Plan plan = by.plan(run.guidance);
  if (run.timesteps != timesteps_fingerprint(plan)) {
    refuse(place, "the sampler must be one that can take the trajectory on", "one with other timesteps");
  }
  std::size_t networks = run.memories.size();
  for (PlannedStep const& planned : plan.steps) networks = std::max(networks, planned.network + 1);
  if (run.guidance.guide_network) networks = std::max(networks, *run.guidance.guide_network + 1);
  if (fingerprints.size() < networks) {
    refuse(place, "there must be a fingerprint for each of the " + std::to_string(networks) + " networks",
           std::to_string(fingerprints.size()));
  }
  if (!is_utf8(notes.text)) refuse(place, "the text of notes must be UTF-8", notes.text);
  TrajectoryWriter writer;
  writer.in_dict([&] {
    writer.field("format", trajectory_format);
    writer.field("version", trajectory_version);
    writer.list("networks", fingerprints);
    writer.list("plan", facts_of(plan, by.options));
    writer.dict("run", [&] { write_trajectory(writer, run, by); });
    writer.dict("notes", [&] {
      writer.field("text", notes.text);
      writer.list("tensors", notes.tensors);
    });
  });
  write_file(path, writer.pickle.archive(), sync);
}

}  // namespace detail

/// Writes a run down, whole or not at all.
/// @param sampler that is to take it on; with its timesteps
/// @param fingerprints what tells the run's networks from others, one each in their order: `fingerprint_text` of their
///        files (file/fingerprint.hpp), or a text of one's own for networks that a program makes itself
/// @param notes of the program's own, read by TrajectoryFile
/// @throws std::invalid_argument for an update rule whose State does not list its members and a network that keeps what
/// is no FeatureMemory, by name, for a sampler of other timesteps and for too few fingerprints; before anything is
/// written
/// @throws std::runtime_error where the file cannot be written; then none is left
template <class Sampler>
void save_trajectory(std::string const& path, Sampler const& sampler, Trajectory const& trajectory,
                     std::vector<std::string> const& fingerprints, TrajectoryNotes const& notes = {},
                     Sync sync = Sync::now) {
  detail::save_trajectory(path, detail::keeper_of(sampler), trajectory, fingerprints, notes, sync);
}

/// A file of save_trajectory, opened: what it says of itself, and the run.
class TrajectoryFile {
 public:
  /// @throws std::runtime_error naming the file and what is wrong with it: another kind of file, a later version,
  /// damage, an end too early
  explicit TrajectoryFile(std::string const& path) : source_(detail::quoted(path)) {
    reading([&] {
      reader_ = std::make_shared<detail::TrajectoryReader>(path);
      require_format();
      fingerprints_ = reader_->texts(root(), "networks");
      Value const& run = this->run();
      next_ = reader_->whole(run, "next");
      count_ = reader_->whole(run, "count");
    });
  }

  int next() const { return next_; }                                              ///< steps that are done
  int count() const { return count_; }                                            ///< of the whole run
  std::vector<std::string> const& fingerprints() const { return fingerprints_; }  ///< of its networks

  /// What the program kept with it.
  TrajectoryNotes notes() const {
    return reading([&] {
      Value const& notes = reader_->at(root(), "notes");
      return TrajectoryNotes{reader_->text(notes, "text"), reader_->named_tensors(notes, true)};
    });
  }

  /// The run, on the networks' device.
  /// @param sampler must do at each step what the sampler would that the run was saved with
  /// @throws std::invalid_argument naming what of the sampler, the networks or `with` is another than the run's
  /// @throws std::runtime_error naming what is wrong with the file
  template <class Sampler>
  Trajectory trajectory(Sampler const& sampler, std::vector<Network> const& networks, GoOnWith const& with) const {
    return load(detail::keeper_of(sampler), networks, with);
  }

 private:
  using Value = detail::TrajectoryReader::Value;
  using Kind = detail::TrajectoryReader::Kind;

  template <class Action>
  auto reading(Action action) const -> decltype(action()) {
    return detail::reading(detail::trajectory_kind, source_, action);
  }

  [[noreturn]] void refuse(std::string const& rule, std::string const& got) const {
    detail::refuse("load_trajectory", source_ + ": " + rule, got);
  }

  Value const& root() const { return reader_->root(); }
  Value const& run() const { return reader_->at(root(), "run", Kind::dict); }

  void require_format() const {
    Value const* const format = reader_->find(root(), "format");
    const std::string name = format && format->kind == Kind::text ? std::string(format->text) : "";
    if (name == "tstitch trajectory 1") {
      throw std::runtime_error("a file of Trajectory.save, which Sampler.load of the Python package reads");
    }
    reader_->require(name == detail::trajectory_format, "a file of torch.save that holds something else");
    const std::int64_t version = reader_->at(root(), "version", Kind::integer).number;
    reader_->require(version >= 1 && version <= detail::trajectory_version,
                     "version " + std::to_string(version) + ", where this library knows those up to " +
                         std::to_string(detail::trajectory_version));
  }

  void require_networks(std::vector<Network> const& networks, std::vector<std::string> const& given) const {
    if (networks.size() != fingerprints_.size() || given.size() != fingerprints_.size()) {
      refuse("must be taken on by " + std::to_string(fingerprints_.size()) + " networks with a fingerprint each",
             std::to_string(networks.size()) + " networks and " + std::to_string(given.size()) + " fingerprints");
    }
    for (std::size_t k = 0; k < given.size(); ++k) {
      if (given[k] == fingerprints_[k]) continue;
      refuse("network " + std::to_string(k) + " must be the run's, of fingerprint " + detail::quoted(fingerprints_[k]),
             detail::quoted(given[k]) + " ('" + detail::printable(networks[k].info().name) + "')");
    }
  }

  void require_same(std::vector<detail::Fact> const& of_run, std::vector<detail::Fact> const& given) const {
    for (std::size_t k = 0; k < std::max(of_run.size(), given.size()); ++k) {
      if (k >= of_run.size() || k >= given.size() || of_run[k].name != given[k].name) {
        refuse("must be of a sampler that this library knows", "a run that states something else");
      }
      auto const& [name, expected] = of_run[k];
      std::vector<std::string> const& values = given[k].values;
      if (expected.size() != values.size()) {
        refuse("must have as many values of '" + name + "' as the run, " + std::to_string(expected.size()),
               std::to_string(values.size()));
      }
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (values[i] == expected[i]) continue;
        const std::string where = values.size() > 1 ? " at " + std::to_string(i) : "";
        refuse("the " + name + where + " must be the run's, '" + detail::printable(expected[i]) + "'",
               "'" + detail::printable(values[i]) + "'");
      }
    }
  }

  /// That a callable is given where the run had one, and only there.
  void require_given(bool had, bool given, char const* name) const {
    if (had && !given) refuse(std::string(name) + " must be given again, which no file holds", "none");
    if (!had && given) refuse(std::string(name) + " must be given only where the run had one of its own", "one");
  }

  void require_callables(GoOnWith const& with) const {
    Value const& run = this->run();
    const auto is_own = [&](Value const& of) { return reader_->text(of, "kind") == "own"; };
    bool noise = false, forecast = false, gradient = false;
    reading([&] {
      noise = is_own(reader_->at(run, "noise_source"));
      forecast = is_own(reader_->at(reader_->at(run, "guidance"), "forecast"));
      gradient = reader_->at(run, "gradient").kind != Kind::none;
    });
    require_given(noise, bool(with.noise_source), "noise_source");
    require_given(gradient, bool(with.log_density), "log_density");
    require_given(forecast, bool(with.guidance_forecast), "guidance_forecast");
  }

  Trajectory load(detail::RunKeeper const& by, std::vector<Network> const& networks, GoOnWith const& with) const {
    require_networks(networks, with.fingerprints);
    require_callables(with);
    const Guidance guidance =
        reading([&] { return reader_->guidance(reader_->at(run(), "guidance"), with.guidance_forecast); });
    if (with.guidance) {
      Guidance expected = *with.guidance;
      if (with.guidance_forecast) expected.forecast = with.guidance_forecast;
      require_same(detail::facts_of(guidance), detail::facts_of(expected));
    }
    const auto facts = reading([&] { return reader_->facts(root(), "plan"); });
    const Plan plan = by.plan(guidance);
    require_same(facts, detail::facts_of(plan, by.options));
    reader_->set_device(networks[0].device());
    Trajectory trajectory = reading([&] { return read(by, with); });
    trajectory.guidance = guidance;
    reading([&] { require_sound(trajectory, plan, networks); });
    for (std::size_t k = 0; k < networks.size(); ++k) {
      if (!networks[k].prepares()) continue;
      Trajectory begun = trajectory;  // as it was told when the run began
      begun.next = trajectory.first;
      detail::prepare(networks[k], k, plan, begun);
    }
    return trajectory;
  }

  Trajectory read(detail::RunKeeper const& by, GoOnWith const& with) const {
    detail::TrajectoryReader& in = *reader_;
    Value const& run = this->run();
    Trajectory made{.next = next_,
                    .count = count_,
                    .timesteps = in.fingerprint(run, "timesteps"),
                    .plan = in.fingerprint(run, "plan"),
                    .level = in.level(run, "level"),
                    .x = in.tensor(run, "x"),
                    .x_0 = in.tensor(run, "x_0"),
                    .history = in.list(run, "history", [&](Value const& each) { return in.past(each); }),
                    .momentum = in.tensor(run, "momentum"),
                    .seeds = {},
                    .condition = {},
                    .guidance = {}};
    if (Value const& state = in.at(run, "rule_state"); state.kind != Kind::none) {
      in.require(by.rule.see_state != nullptr, "the State of an update rule that has none");
      detail::StateReader members(in, state);
      by.rule.see_state(made.rule_state, members);
    }
    made.memories = in.list(run, "memories", [&](Value const& each) { return in.memory(each); });
    made.forecasts = in.history(in.at(run, "forecasts"));
    made.differences = in.kept(run, "differences");
    for (const std::int64_t each : in.integers(run, "seeds")) made.seeds.push_back(std::uint64_t(each));
    in.require(made.x.defined() && made.x.dim() >= 2 && made.x.is_floating_point(), "a run without x");
    const std::int64_t n = made.x.size(0);
    made.condition.conditional = in.condition(in.at(run, "conditional"), n);
    made.condition.guided = in.condition(in.at(run, "guided"), 2 * n);
    made.noise_source = in.noise_source(in.at(run, "noise_source"), with.noise_source);
    if (Value const& gradient = in.at(run, "gradient"); gradient.kind != Kind::none) {
      made.gradient = {.log_density = with.log_density,
                       .scale = in.real(gradient, "scale"),
                       .of = in.boolean(gradient, "of_x") ? DensityOf::x : DensityOf::x_0};
    }
    Value const& kept = in.at(run, "inpainting");
    made.inpainting = {in.tensor(kept, "mask"), in.tensor(kept, "image"), in.tensor(kept, "noise")};
    made.first = in.whole(run, "first");
    return made;
  }

  /// That its parts fit together, as they do in every run that a sampler has begun.
  void require_sound(Trajectory const& run, Plan const& plan, std::vector<Network> const& networks) const {
    const auto require = [](bool holds, char const* what) { detail::TrajectoryReader::require(holds, what); };
    const auto like_x = [&](at::Tensor const& tensor) {
      return tensor.defined() && tensor.sizes() == run.x.sizes() && tensor.scalar_type() == run.x.scalar_type();
    };
    require(run.count == int(plan.steps.size()) && run.next <= run.count && run.first <= run.next,
            "a run at a step that it does not have");
    require(run.timesteps == timesteps_fingerprint(plan), "a run of other timesteps than it says");
    require(std::int64_t(run.seeds.size()) == run.x.size(0), "another number of seeds than rows of x");
    require(run.x_0.defined() ? like_x(run.x_0) : run.next == run.first, "an x_0 of another shape than x");
    require(!run.momentum.defined() || run.momentum.size(0) == run.x.size(0), "momentum of another shape than x");
    for (Past const& past : run.history) {
      require(like_x(past.x) && like_x(past.x_0), "a history of another shape than x");
      require(past.network < networks.size() && past.step.index < run.count, "a history of other steps");
    }
    require(run.memories.size() <= networks.size(), "what more networks keep than there are");
    Inpainting const& kept = run.inpainting;
    require(!kept.mask.defined() || (like_x(kept.image) && like_x(kept.noise) && kept.mask.dim() == run.x.dim()),
            "a mask without an image of the shape of x");
    std::int64_t most = 0;
    for (Network const& network : networks) {
      most = std::max({most, network.info().num_classes, network.info().null_class.value_or(-1) + 1});
    }
    for (Condition const* condition : {&run.condition.conditional, &run.condition.guided}) {
      for (const std::int64_t label : condition->host_labels) {
        require(label >= 0 && label < most, "a class that no network has");
      }
    }
  }

  std::string source_;
  std::shared_ptr<detail::TrajectoryReader> reader_ = nullptr;
  std::vector<std::string> fingerprints_ = {};
  int next_ = 0, count_ = 0;
};

/// A run that save_trajectory wrote, to be taken on by `Sampler::advance` or `Sampler::finish` to the bits that it
/// would have had; also on another device, then to the bits that this one makes.
/// @throws as TrajectoryFile and TrajectoryFile::trajectory do
template <class Sampler>
Trajectory load_trajectory(std::string const& path, Sampler const& sampler, std::vector<Network> const& networks,
                           GoOnWith const& with) {
  return TrajectoryFile(path).trajectory(sampler, networks, with);
}

}  // namespace tstitch
