// What a network says that is no number is found in the result, whatever clips or weighs it on the way.

#include <tstitch/method/dpm_solver_adaptive.hpp>
#include <tstitch/method/inversion.hpp>
#include <tstitch/tstitch.hpp>

#include <cstdlib>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// Where a network says what is no number.
struct Fault {
  double value;
  int call = -1;  ///< -1: always
  bool one_element = false;
  int half = 0;  ///< of guidance: the rows with the condition, or 1 without
  bool in_variance = false;
};

/// A network that leaves x out of what it says, so that nothing but its faults is in it.
Network faulty(Fault const& fault, NetworkInfo info) {
  info.name = "faulty";
  info.channels = 2;
  info.height = info.width = 4;
  info.num_classes = 1;
  info.null_class = 1;
  const bool learned = info.learned_variance;
  return Network(
      [fault, learned, calls = std::make_shared<int>()](at::Tensor const& x, at::Tensor const&, Condition const&) {
        at::Tensor out = x.new_zeros({x.size(0), learned ? 4 : 2, 4, 4}).add(0.1);
        if (fault.call >= 0 && (*calls)++ != fault.call) return out;
        at::Tensor part = out.narrow(0, fault.half ? x.size(0) / 2 : 0, x.size(0) > 1 ? x.size(0) / 2 : 1)
                              .narrow(1, fault.in_variance ? 2 : 0, 2);
        if (fault.one_element) part = part.select(0, 0).select(0, 1).select(0, 2).narrow(0, 3, 1);
        part.fill_(fault.value);
        return out;
      },
      std::move(info));
}

/// @param one the model schedule
template <class Schedule, class Make>
void every_sampler(Schedule const& one, Make check) {
  const auto options = [](Thresholding thresholding) {
    return SamplingOptions{
        .steps = 6, .spacing = Spacing::leading(0, {.include_last = false}), .thresholding = thresholding};
  };
  for (Thresholding const& thresholding :
       {Thresholding::none(), Thresholding::clip(), Thresholding::dynamic(0.9, 1, 2)}) {
    const SamplingOptions o = options(thresholding);
    check("DDIM", DDIM{schedule, one, o});
    check("DDIM, eta 1", DDIM{schedule, one, o, {.eta = 1, .eps_of_thresholded = false}});
    check("DDPM", DDPM{schedule, one, o});
    check("DPMSolver 3", DPMSolver{schedule, one, o, {.order = 3}});
    check("DPMSolver SDE", DPMSolver{schedule, one, o, {.eta = 1}});
    check("DPMSolver noise", DPMSolver{schedule, one, o, {.algorithm_type = AlgorithmType::dpmsolver}});
    check("DEIS", DEIS{schedule, one, o});
    check("UniPC", UniPC{schedule, one, o, {.order = 3}});
    check("LMS", LMS{schedule, one, o});
    check("PNDM", PNDM{schedule, one, o});
    check("Euler", Euler{schedule, one, o});
    check("EulerAncestral", EulerAncestral{schedule, one, o});
    check("Heun", Heun{schedule, one, o});
    check("DPM2", DPM2{schedule, one, o, {.eta = 0.5}});
    check("Singlestep 3", DPMSolverSinglestep{schedule, one, o, {.order = 3}});
    check("2S ancestral", DPMSolver2SAncestral{schedule, one, o});
    check("DPMSolverSDE", DPMSolverSDE{schedule, one, o});
    check("LCM", LCM{schedule, one, o});
  }
}

/// The samplers that look at values, and those that go the other way.
template <class Schedule, class Make>
void adaptive_and_inverse(Schedule const& one, Make check) {
  for (Thresholding const& thresholding :
       {Thresholding::none(), Thresholding::clip(), Thresholding::dynamic(0.9, 1, 2)}) {
    const SamplingOptions two{.steps = 2, .thresholding = thresholding}, six{.steps = 6, .thresholding = thresholding};
    using Adaptive = AdaptiveDPMSolverUpdate;
    check("adaptive 2", AdaptiveDPMSolver{schedule, one, two, Adaptive{.order = 2}});
    check("adaptive 3", AdaptiveDPMSolver{schedule, one, two, Adaptive{.h_init = 1}});
    check("adaptive, batch",
          AdaptiveDPMSolver{schedule, one, two, Adaptive{.h_init = 1, .error_norm = ErrorNorm::batch}});
    check("adaptive, PID", AdaptiveDPMSolver{schedule, one, two, Adaptive{.h_init = 1, .pid = PIDController{}}});
    check("adaptive, noise",
          AdaptiveDPMSolver{schedule, one, two, Adaptive{.order = 2, .algorithm_type = AlgorithmType::dpmsolver}});
    check("inverse DDIM", Inversion{schedule, one, six, DDIMUpdate{}});
    check("inverse Euler", Inversion{schedule, one, six, EulerUpdate{}});
    check("inverse Heun", Inversion{schedule, one, six, HeunUpdate{}});
    check("inverse DPM2", Inversion{schedule, one, six, DPM2Update{}});
    check("inverse DPMSolver 1", Inversion{schedule, one, six, DPMSolverUpdate{.order = 1}});
  }
}

/// What breaks in the middle of a run: one call of one network, or of the gradient.
struct Culprit {
  double value = NAN;
  int call = -1;               ///< which of the batch, counted over all networks; -1: none
  bool of_gradient = false;    ///< counts the gradients in place of the calls
  std::int64_t row = 0;        ///< of the image
  bool unconditional = false;  ///< the other half of the rows, where there are two
};

/// What happened in a batch.
struct Calls {
  Culprit culprit = {};
  int networks = 0, gradients = 0;
  std::string broken = {};  ///< who said what is no number
  bool was_last = false;
};

/// A network that depends on x where it must have gradients, and else leaves it out.
struct Breakable {
  std::shared_ptr<Calls> calls;
  std::string name;
  double level;

  void prepare(std::span<const double>, Condition const&) const { calls->networks = calls->gradients = 0; }

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, Condition const& condition) const {
    at::Tensor out = x.requires_grad() ? x.mul(level) : at::Tensor(x.new_zeros(x.sizes()).add(level));
    // Halves that differ, so that there is something to guide.
    const bool halves = condition.labels.defined() && condition.labels.select(0, -1).item<std::int64_t>() == 1;
    const std::int64_t images = halves ? x.size(0) / 2 : x.size(0);
    if (halves) out = out.mul(condition.labels.mul(0.5).add(1).to(x.scalar_type()).view({-1, 1, 1, 1}));
    Culprit const& culprit = calls->culprit;
    if (calls->networks++ != culprit.call || culprit.of_gradient) return out;
    at::Tensor broken = x.new_zeros(x.sizes());
    const std::int64_t row = culprit.row + (halves && culprit.unconditional ? images : 0);
    broken.select(0, row).select(0, 1).select(0, 2).narrow(0, 3, 1).fill_(culprit.value);
    calls->broken = name;
    return out.add(broken);
  }
};

/// How a run may be guided.
struct Guided {
  char const* name;
  Guidance guidance = {};
  bool gradient = false;
  DensityOf of = DensityOf::x;
};

std::vector<Guided> every_guidance() {
  const ProjectedGuidance projected{.eta = 0.5, .norm_threshold = 1, .momentum = -0.5};
  return {{"none"},
          {"plain", {.scale = 3}},
          {"below 1", {.scale = 0.5}},
          {"in an interval", {.scale = 3, .begin = 0.4, .end = 0.6}},
          {"rescaled", {.scale = 3, .rescale = 0.7}},
          {"projected", {.scale = 3, .projected = ProjectedGuidance{}}},
          {"projected with momentum", {.scale = 3, .projected = projected}},
          {"by a guide", {.scale = 3, .guide_network = 1}},
          {"by a guide, projected", {.scale = 3, .projected = projected, .guide_network = 1}},
          {"by a gradient of x", {.scale = 3}, true, DensityOf::x},
          {"by a gradient of x_0", {.scale = 3}, true, DensityOf::x_0},
          {"by a gradient and a guide", {.scale = 3, .guide_network = 1}, true, DensityOf::x_0}};
}

/// Breaks the first, the middle and the last call of a sampler, and expects that the step and the network are named.
template <class Sampler>
void break_everywhere(char const* name, Sampler const& sampler, Guided const& guided, PredictionType type, double value,
                      bool unconditional, std::int64_t row) {
  constexpr bool inverse = requires {
    Sampler{sampler}.rule().iterations;
  };
  const auto calls = std::make_shared<Calls>();
  const auto network = [&](std::string const& called, double level) {
    return Network(Breakable{calls, called, level}, {.name = called,
                                                     .prediction_type = type,
                                                     .channels = 2,
                                                     .height = 4,
                                                     .width = 4,
                                                     .num_classes = 1,
                                                     .null_class = 1});
  };
  const std::vector<Network> networks{network("small", 0.1), network("guide", 0.3), network("large", 0.2)};
  Request request{.labels = {0, 0, 0}, .guidance = guided.guidance};
  if constexpr (inverse)
    request.initial_image = noise({1, 2, 3}, NoiseAddress::initial(), {2, 4, 4}, at::kFloat).mul(0.5);
  if (guided.gradient) {
    request.gradient = {[calls](at::Tensor const& picture, at::Tensor const&, Condition const&) {
                          at::Tensor slope = picture.new_zeros(picture.sizes()).add(0.01);
                          Culprit const& culprit = calls->culprit;
                          if (calls->gradients++ == culprit.call && culprit.of_gradient) {
                            slope.select(0, culprit.row).select(0, 0).select(0, 1).narrow(0, 0, 1).fill_(culprit.value);
                            calls->broken = "the gradient";
                          }
                          return picture.mul(slope).flatten(1).sum(1);
                        },
                        1, guided.of};
  }
  const at::Tensor clean = sampler.sample(networks, request).images;
  const int network_calls = calls->networks, gradients = calls->gradients;
  for (const bool of_gradient : {false, true}) {
    const int count = of_gradient ? gradients : network_calls;
    if (count == 0) continue;
    for (const int call : {0, count / 2, count - 1}) {
      calls->culprit = {value, call, of_gradient, row, unconditional};
      INFO(name << ", guided: " << guided.name << ", value " << value << ", type " << int(type) << ", call " << call
                << " of " << count << (of_gradient ? " gradients" : "") << (unconditional ? ", unconditional" : ""));
      // Who breaks it, and in which step, by taking the steps one by one.
      calls->broken.clear();
      int step = -1;
      Trajectory trajectory = sampler.begin(networks, request);
      while (!trajectory.finished() && calls->broken.empty()) {
        step = sampler.plan().steps[std::size_t(trajectory.next)].step.index;
        try {
          sampler.advance(networks, trajectory);
        } catch (std::runtime_error const&) {
          break;
        }
      }
      REQUIRE_FALSE(calls->broken.empty());
      const std::string culprit = calls->broken;
      at::Tensor images;
      const std::string message =
          message_of<std::runtime_error>([&] { images = sampler.sample(networks, request).images; });
      // An image that the adaptive solver has brought to its end already asks no more.
      if (message == "nothing was thrown") {
        CHECK(images.equal(clean));
        CHECK(std::string(name).starts_with("adaptive"));
        continue;
      }
      CHECK_THAT(message, ContainsSubstring("must be") && ContainsSubstring("finite number"));
      CHECK_THAT(message, ContainsSubstring("at step " + std::to_string(step) + " (t = "));
      CHECK_THAT(message,
                 ContainsSubstring(" by " + std::string(of_gradient ? "" : "network ")) && ContainsSubstring(culprit));
      calls->culprit.call = -1;
    }
  }
}

}  // namespace

TEST_CASE("every sampler refuses what its network says that is no number") {
  for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
    for (const PredictionType type : {PredictionType::epsilon, PredictionType::sample}) {
      for (const int call : {-1, 0, 1, 2, 3, 5}) {
        for (const double guidance : {1.0, 3.0}) {
          for (const int half : {0, 1}) {
            if (half && guidance == 1) continue;
            const Fault fault{value, call, call >= 0, half};
            every_sampler(SingleNetwork{}, [&](char const* name, auto const& sampler) {
              INFO(name << ", value " << value << ", call " << call << ", type " << int(type) << ", guidance "
                        << guidance << ", half " << half);
              const std::string message = message_of<std::runtime_error>([&] {
                sampler.sample({faulty(fault, {.prediction_type = type})},
                               {.labels = {0}, .guidance = {.scale = guidance}});
              });
              CHECK_THAT(message, ContainsSubstring("values must be finite numbers"));
              // A network that fails at one call alone does not fail again when the run is repeated.
              if (call < 0) CHECK_THAT(message, ContainsSubstring("by network 0 ('faulty')"));
            });
          }
        }
      }
    }
  }
}

TEST_CASE("what broke one image is named with its step, whichever rule and guidance is used") {
  const bool all = std::getenv("TSTITCH_EVERY_FAULT") != nullptr;
  const std::vector<double> values{NAN, double(INFINITY), -double(INFINITY)};
  std::size_t turn = 0;
  for (Guided const& guided : every_guidance()) {
    const auto check = [&](char const* name, auto const& sampler) {
      // With TSTITCH_EVERY_FAULT all of them; else each second, with one value, type and half in turn.
      if (++turn % 2 && !all) return;
      for (std::size_t k = 0; k < values.size(); ++k) {
        for (const PredictionType type : {PredictionType::epsilon, PredictionType::sample}) {
          for (const bool unconditional : {false, true}) {
            const std::size_t which = k + 3 * (type == PredictionType::sample) + 6 * unconditional;
            if (!all && which != turn / 2 % 12) continue;
            break_everywhere(name, sampler, guided, type, values[k], unconditional, std::int64_t(turn % 3));
          }
        }
      }
    };
    const auto halves = [](Step const& step) { return std::size_t(step.index < step.count / 2 ? 0 : 2); };
    every_sampler(halves, check);
    adaptive_and_inverse(halves, check);
  }
}

TEST_CASE("a condition that is no number is named") {
  const Network network(
      [](at::Tensor const& x, at::Tensor const&, Condition const& condition) {
        return x.mul(0).add(condition.tensors[0].second.view({-1, 1, 1, 1}));
      },
      {.channels = 2, .height = 4, .width = 4, .conditions = {{.name = "text", .shape = {1}}}});
  const at::Tensor text = noise({1}, NoiseAddress::initial(), {1, 1, 1}, at::kFloat).view({1, 1}).fill_(NAN);
  CHECK_THAT(message_of<std::runtime_error>([&] {
               DDIM{schedule, SingleNetwork{}, {.steps = 2}}.sample({network}, {.conditions = {{"text", text}}});
             }),
             ContainsSubstring("at step 0 (t = 999) by network 0; condition 'text' has such values too"));
}

TEST_CASE("a learned variance that is no number is refused where it is used") {
  for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
    const DDPM sampler{schedule, SingleNetwork{}, {.steps = 4}};
    CHECK_THAT(message_of<std::runtime_error>([&] {
                 sampler.sample({faulty({value, -1, true, 0, true}, {.learned_variance = true})}, {.labels = {0}});
               }),
               ContainsSubstring("at step 0 (t = 999) by network 0 ('faulty')"));
  }
}

TEST_CASE("clipping changes no bit of what is finite") {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, 20, 20}, type).mul(2);
    x.narrow(3, 0, 1).fill_(-0.0);
    const at::Tensor clipped = Thresholding::clip(0.7)(x), expected = x.clamp(-0.7, 0.7);
    CHECK(clipped.equal(expected));
    CHECK(clipped.reciprocal().equal(expected.reciprocal()));  // which tells zeros apart
    CHECK(Thresholding::clip(0.7)(x.transpose(2, 3)).equal(expected.transpose(2, 3)));
    for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
      at::Tensor broken = x.clone();
      broken.select(0, 1).select(0, 2).narrow(0, 19, 1).fill_(value);
      const at::Tensor kept = broken.isfinite();
      for (Thresholding const& thresholding : {Thresholding::clip(0.7), Thresholding::dynamic(0.9, 1, 2)}) {
        CHECK(thresholding(broken).isfinite().logical_or(kept).equal(kept));
        CHECK_FALSE(thresholding(broken).isfinite().all().item<bool>());
      }
    }
  }
}
