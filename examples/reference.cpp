// What the reference of the headers shows for each class, in groups: reference small.pt
//
// A class has the shortest function that names it, in this program or another one of this folder.
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <tstitch/file/quality_table.hpp>
#include <tstitch/load.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/model/class_mixture.hpp>
#include <tstitch/model/network_wrapper.hpp>
#include <tstitch/model/text_encoder.hpp>
#include <tstitch/output/decode_queue.hpp>
#include <tstitch/output/progress.hpp>
#include <tstitch/peer/by_name.hpp>
#include <tstitch/peer/preset.hpp>
#include <tstitch/pipeline.hpp>
#include <tstitch/plan/by_name.hpp>
#include <tstitch/study/agreement.hpp>
#include <tstitch/study/budget.hpp>
#include <tstitch/study/calibration.hpp>
#include <tstitch/study/comparison.hpp>
#include <tstitch/study/fastest_batch.hpp>
#include <tstitch/study/forecast_calibration.hpp>
#include <tstitch/study/run_times.hpp>
#include <tstitch/study/variational_bound.hpp>
#include <tstitch/tstitch.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace {

const tstitch::NoiseSchedule noise_schedule = tstitch::NoiseSchedule::linear();

/// The exact network for data N(0.3, 0.5^2): predicts the noise in x, some of it wrong.
tstitch::Network network(std::string const& name, double wrong = 1) {
  const auto predict = [=](at::Tensor const& x, at::Tensor const& t) {
    const auto [alpha, sigma] = noise_schedule.at(t.select(0, 0).item<double>());
    return x.sub(alpha * 0.3).mul(wrong * sigma / (alpha * alpha * 0.25 + sigma * sigma));
  };
  return tstitch::Network(predict, {.name = name,
                                    .channels = 1,
                                    .height = 16,
                                    .width = 16,
                                    .timestep_type = tstitch::TimestepType::float32,
                                    .noise_schedule = noise_schedule});
}

const std::vector<tstitch::Network> networks{network("small", 0.95), network("large")};
const tstitch::Request four{.count = 4, .seed = 1};

// ---------------------------------------------------------------------------------------------------------- plans

void levels() {
  const tstitch::NoiseSchedule cosine = tstitch::NoiseSchedule::cosine();
  const tstitch::NoiseLevel level = cosine.at(500);
  const tstitch::Timestep again = cosine.point(level.lambda());
  std::cout << "level: alpha " << level.alpha << ", sigma " << level.sigma << ", again at t " << std::lround(again.t)
            << "\n";
}

void spacings() {
  // Points of an even grid, and of one that is even in the noise level.
  const tstitch::Spacing even = tstitch::Spacing::linspace(tstitch::Grid{.include_last = false});
  const tstitch::Spacing karras =
      tstitch::Spacing::karras(7, tstitch::SigmaGrid{.time = tstitch::TimeOfSigma::nearest});
  for (tstitch::Spacing const& spacing : {even, karras}) {
    std::cout << spacing.name() << ":";
    for (tstitch::Timestep const& each : spacing(noise_schedule, 4)) std::cout << " " << each.t;
    std::cout << "\n";
  }
}

void spacings_by_name() {
  for (tstitch::NamedSpacing const& each : tstitch::spacings()) {
    if (each.name == "shifted") std::cout << each.name << " " << each.numbers << ": " << each.help << "\n";
  }
  std::cout << tstitch::spacing_by_name("shifted:3").name() << "\n";
}

void show(tstitch::AnyModelSchedule const& schedule) {
  const tstitch::DDIM sampler{noise_schedule, schedule, {.steps = 10}};
  for (tstitch::PlannedStep const& planned : sampler.plan().steps) std::cout << planned.network;
  std::cout << " ";
}

void routings() {
  show(tstitch::SingleNetwork{.network = 1});
  show(tstitch::Stitch{.ratio = 0.4});
  show(tstitch::LargeFirst{.ratio = 0.4});
  show(tstitch::BothEnds{.ratio = 0.4});
  show(tstitch::Interleaved{.ratio = 0.4});
  show(tstitch::FallingProbability{.ratio = 0.4, .seed = 3});
  show(tstitch::Table{{0, 0, 0, 1, 1, 1, 1, 1, 1, 0}});
  std::cout << "\n";
}

void reference_routings() {
  // As the code that came with T-Stitch routes.
  show(tstitch::routing::DiT{.ratio = 0.4});
  show(tstitch::routing::DiTFractions{.fractions = {0.4, 0.6}});
  show(tstitch::routing::StableDiffusion{.ratio = 0.4});
  show(tstitch::routing::LatentDiffusion{.ratio = 0.4});
  show(tstitch::routing::LatentConsistency{.ratio = 0.4});
  std::cout << "\n";
}

void routings_by_name() {
  show(tstitch::model_schedule_by_name("interleaved", tstitch::RoutingOptions{.ratio = 0.3}));
  show(tstitch::model_schedule_by_name("timestep:600"));
  for (tstitch::NamedRouting const& each : tstitch::routing::named()) {
    if (each.name == "both-ends") std::cout << each.name << ": " << each.help << "\n";
  }
}

void plans() {
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{.ratio = 0.4}, {.steps = 10}};
  const tstitch::Plan plan = sampler.plan({.scale = 2.0});
  for (tstitch::NetworkWork const& work : plan.work(2)) {
    std::cout << work.computed << " evaluations of " << work.rows << " rows a picture\n";
  }
}

// ---------------------------------------------------------------------------------------------------------- samplers

void samplers() {
  using tstitch::Stitch;
  const tstitch::SamplingOptions options{.steps = 12, .thresholding = tstitch::Thresholding::none()};
  const std::vector<tstitch::AnySampler> all{tstitch::DDPM{noise_schedule, Stitch{}, options},
                                             tstitch::DDIM{noise_schedule, Stitch{}, options},
                                             tstitch::DPMSolver{noise_schedule, Stitch{}, options},
                                             tstitch::DPMSolverSinglestep{noise_schedule, Stitch{}, options},
                                             tstitch::DPMSolver2SAncestral{noise_schedule, Stitch{}, options},
                                             tstitch::DPMSolverSDE{noise_schedule, Stitch{}, options},
                                             tstitch::UniPC{noise_schedule, Stitch{}, options},
                                             tstitch::DEIS{noise_schedule, Stitch{}, options},
                                             tstitch::LMS{noise_schedule, Stitch{}, options},
                                             tstitch::PNDM{noise_schedule, Stitch{}, options},
                                             tstitch::Euler{noise_schedule, Stitch{}, options},
                                             tstitch::EulerAncestral{noise_schedule, Stitch{}, options},
                                             tstitch::Heun{noise_schedule, Stitch{}, options},
                                             tstitch::DPM2{noise_schedule, Stitch{}, options},
                                             tstitch::LCM{noise_schedule, Stitch{}, options}};
  int sound = 0;
  for (tstitch::AnySampler const& sampler : all) {
    sound += std::abs(sampler.sample(networks, four).images.mean().item<double>() - 0.3) < 0.1;
  }
  std::cout << "samplers: " << sound << " of " << all.size() << "\n";
}

void update_rules() {
  using tstitch::Churn;
  const std::vector<tstitch::AnyUpdateRule> all{
      tstitch::DDPMUpdate{.variance = tstitch::Variance::fixed_large},
      tstitch::DDIMUpdate{.eta = 0.5},
      tstitch::DPMSolverUpdate{.order = 3},
      tstitch::DPMSolverSinglestepUpdate{.order = 3},
      tstitch::DPMSolver2SAncestralUpdate{.eta = 0.5},
      tstitch::DPMSolverSDEUpdate{.eta = 0.5},
      tstitch::UniPCUpdate{.order = 3},
      tstitch::DEISUpdate{.order = 2},
      tstitch::LMSUpdate{.order = 3},
      tstitch::PNDMUpdate{.start = tstitch::PNDMStart::improved_euler},
      tstitch::EulerUpdate{.churn = Churn{.s_churn = 5}},
      tstitch::EulerAncestralUpdate{.eta = 0.5},
      tstitch::HeunUpdate{.churn = Churn{.s_churn = 5}},
      tstitch::DPM2Update{.eta = 0.5},
      tstitch::LCMUpdate{.sigma_data = 0.5},
      tstitch::InversionUpdate<tstitch::DDIMUpdate>{.iterations = 5},
      tstitch::AdaptiveDPMSolverUpdate{.order = 2},
  };
  for (tstitch::AnyUpdateRule const& rule : all) std::cout << rule.name() << "; ";
  std::cout << "\n";
}

void rules_by_name() {
  for (tstitch::NamedRule const& rule : tstitch::update_rules()) {
    if (rule.name != "ddim") continue;
    std::cout << rule.name << ": " << rule.help;
    for (tstitch::NamedOption const& option : rule.options) std::cout << "; " << option.name << " " << option.usual;
    std::cout << "\n";
  }
  const tstitch::OptionValue eta(0.5);  // numbers, words and bools
  std::cout << tstitch::update_rule_by_name("ddim", {{"eta", eta}}).name() << "\n";
}

void adaptive_steps() {
  // As many evaluations as the tolerance asks for; the observer sees how many that were.
  int trials = 0;
  tstitch::AdaptiveDPMSolverUpdate rule{.atol = 0.01};
  rule.pid = tstitch::PIDController{.p = 0.2, .i = 0.6};
  rule.observer = [&](tstitch::AdaptiveReport const& report) { trials += report.trials[0]; };
  const tstitch::AdaptiveDPMSolver sampler{noise_schedule, tstitch::Stitch{.ratio = 0.5}, {.steps = 2}, rule};
  const at::Tensor images = sampler.sample(networks, four).images;

  tstitch::PIDController::Memory memory{};
  const tstitch::StepControl control = rule.pid->operator()(0.5, 2, memory);
  std::cout << "adaptive: " << (trials > 4) << ", an error of half of what is tolerated makes steps longer "
            << (control.accepted && control.factor > 1) << ", mean "
            << (std::abs(images.mean().item<double>() - 0.3) < 0.1) << "\n";
}

/// DDIM as an update rule of one's own: what it is given, and what it predicts from.
const auto ddim = [](tstitch::StepInput const& in) {
  const tstitch::Prediction prediction = in.predict();
  const auto [alpha, sigma] = in.step.from;
  const at::Tensor eps = in.x.sub(prediction.x_0, alpha).div(sigma);
  return prediction.x_0.mul(in.step.to.alpha).add(eps, in.step.to.sigma);
};

/// The same with a look back, at the step before.
struct LookingBack {
  int history() const { return 1; }
  at::Tensor operator()(tstitch::StepInput const& in) const {
    at::Tensor x_0 = in.predict().x_0;
    for (tstitch::Past const& past : in.history) x_0 = x_0.lerp(past.x_0, 0.1);
    const auto [alpha, sigma] = in.step.from;
    return x_0.mul(in.step.to.alpha).add(in.x.sub(x_0, alpha).div(sigma), in.step.to.sigma);
  }
};

void own_rules() {
  const tstitch::SamplingOptions options{.steps = 12};
  const tstitch::Sampler mine{noise_schedule, tstitch::Stitch{}, options, ddim};
  const tstitch::Sampler looking_back{noise_schedule, tstitch::Stitch{}, options, LookingBack{}};
  const tstitch::Samples samples = mine.sample(networks, four);
  const tstitch::DDIM theirs{noise_schedule, tstitch::Stitch{}, options};
  const double apart = samples.images.sub(theirs.sample(networks, four).images).abs().max().item<double>();
  std::cout << "own rules: DDIM " << (apart < 1e-4) << ", looking back differs "
            << !looking_back.sample(networks, four).images.equal(samples.images) << "\n";
}

// ---------------------------------------------------------------------------------------------------------- requests

void requests() {
  tstitch::Request request{.count = 2, .seed = 7, .batch_size = 1};
  request.initial_image = at::zeros({1, 1, 16, 16});
  request.strength = 0.5;
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 8}};
  const tstitch::Samples samples = sampler.sample(networks, request);
  std::cout << "request: " << samples.finished_images << " pictures of seeds " << samples.seeds[0] << " and "
            << samples.seeds[1] << "\n";
}

void guidance_scales() {
  const tstitch::GuidanceScale scale{1.5, 3.0};  // one for each network; or one number for all
  const tstitch::Guidance guidance{.scale = scale, .begin = 0.2, .end = 0.8};
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 5}};
  for (tstitch::PlannedStep const& planned : sampler.plan(guidance).steps) std::cout << planned.guidance_scale << " ";
  std::cout << "\n";
}

void gradients() {
  const tstitch::GradientGuidance brighter{.log_density =
                                               [](at::Tensor const& x_0, at::Tensor const&, tstitch::Condition const&) {
                                                 return x_0.sub(1).square().sum({1, 2, 3}).neg();
                                               },
                                           .scale = 0.5};
  const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{1}, {.steps = 20}};
  const at::Tensor plain = sampler.sample(networks, {.count = 2}).images;
  const at::Tensor guided = sampler.sample(networks, {.count = 2, .gradient = brighter}).images;
  std::cout << "gradients: brighter "
            << (guided.mean().item<double>() > plain.mean().item<double>() && guided.mean().item<double>() < 1) << "\n";
}

void conditions() {
  const tstitch::Network network(
      [](at::Tensor const& x, at::Tensor const&, tstitch::Condition const& condition) {
        return x.mul(0.5).add(condition.at("text").mean({1, 2}).view({-1, 1, 1, 1}));
      },
      {.name = "with text",
       .channels = 1,
       .height = 16,
       .width = 16,
       .conditions = {tstitch::ConditionInfo{"text", {0, 8}}}});
  const tstitch::NamedCondition text{.name = "text", .value = at::ones({1, 3, 8}), .null = at::zeros({1, 3, 8})};
  const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{}, {.steps = 4}};
  const tstitch::Trajectory run = sampler.begin({network}, {.conditions = {text}, .guidance = {.scale = 2.0}});
  tstitch::BatchCondition const& batch = run.condition;  // as the network will see it
  std::cout << "conditions: " << batch.conditional.at("text").size(0) << " row, " << batch.guided.at("text").size(0)
            << " with guidance\n";
}

void one_evaluation() {
  const at::Tensor x = tstitch::noise({1}, tstitch::NoiseAddress::initial(), {1, 16, 16}, at::kFloat);
  const tstitch::EvaluationGuidance none{.scale = 1};
  const tstitch::Prediction predicted = tstitch::denoise(
      networks[1], x, noise_schedule.point(0), tstitch::BatchCondition{}, none, tstitch::Thresholding::clip(1));
  std::cout << "one evaluation: clipped " << (predicted.x_0.abs().max().item<double>() <= 1) << "\n";
}

void masks() {
  // The left half is kept.
  at::Tensor mask = at::ones({1, 1, 16, 16});
  mask.narrow(3, 0, 8).fill_(0);
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 6}};
  const tstitch::Trajectory run = sampler.begin(networks, {.initial_image = at::zeros({1, 1, 16, 16}), .mask = mask});
  tstitch::Inpainting const& kept = run.inpainting;
  const at::Tensor x = kept(run.x, tstitch::NoiseLevel::clean());
  std::cout << "mask: kept " << x.narrow(3, 0, 8).equal(at::zeros({1, 1, 16, 8})) << "\n";
}

void random_numbers() {
  // By the seed of a picture and the step, whatever is drawn beside it; or those of torch.manual_seed(7).
  const at::Tensor first = tstitch::noise({7}, tstitch::NoiseAddress::of_step(3), {1, 16, 16}, at::kFloat);
  const at::Tensor of_torch = tstitch::TorchNoise(7, tstitch::NoiseOrder{.initial_first = true})(
      {0}, tstitch::NoiseAddress::initial(), {1, 16, 16}, at::kFloat);
  std::cout << "noise: again the same "
            << first.equal(
                   tstitch::noise({5, 7}, tstitch::NoiseAddress::of_step(3), {1, 16, 16}, at::kFloat).narrow(0, 1, 1))
            << ", torch's " << of_torch.flatten()[0].item<float>() << "\n";
}

/// An observer that sees steps before and after they are taken.
struct Watching {
  int* begun;
  int* done;
  void before(tstitch::StepBegin const& begin) { *begun += int(begin.images); }
  void operator()(tstitch::StepReport const& report) { *done = report.done; }
};

void observers() {
  int begun = 0, done = 0;
  const tstitch::Observer observer = Watching{&begun, &done};
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 6}};
  sampler.sample(networks, four, observer);
  std::cout << "observer: " << begun << " pictures begun in " << done << " steps\n";
}

void progress() {
  tstitch::ProgressBar bar(4, {"small", "large"});
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 6}};
  sampler.sample(networks, four, std::ref(bar));

  tstitch::ProgressLine line;  // for work of one's own
  for (int i = 1; i <= 3; ++i) line.show(i, 3, {"part " + std::to_string(i)}, i == 3);
}

// ---------------------------------------------------------------------------------------------------------- networks

/// A network around a network, which counts how often it is asked.
struct Counted : tstitch::NetworkWrapper<Counted> {
  Counted(tstitch::Network inside, int& counter) : NetworkWrapper(std::move(inside)), calls(&counter) {}
  at::Tensor operator()(at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& condition,
                        tstitch::Evaluation const& evaluation) const {
    ++*calls;
    return inner()(x, t, condition, evaluation);
  }
  int* calls;
};

/// A network that keeps what it made of the steps so far, in the run: two runs, or a fork, never share it.
struct Remembering {
  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, tstitch::Condition const&,
                        tstitch::Evaluation const& evaluation) const {
    tstitch::Memory none, *memory = evaluation.memory ? evaluation.memory : &none;
    at::Tensor& before = memory->as<at::Tensor>();
    before = before.defined() ? before.lerp(x, 0.5) : x;
    return before;
  }
};

void memories() {
  int calls = 0;
  const tstitch::NetworkInfo info{.name = "remembering", .channels = 1, .height = 16, .width = 16};
  const tstitch::Network counted = Counted(tstitch::Network(Remembering{}, info), calls).network();
  const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{}, {.steps = 6}};
  const at::Tensor images = sampler.sample({counted}, {.count = 1}).images;
  std::cout << "memories: " << calls << " calls, again the same "
            << sampler.sample({counted}, {.count = 1}).images.equal(images) << "\n";
}

/// Parts of a network, of which the blocks do not run in forecast steps.
tstitch::Network in_parts() {
  const tstitch::SplitNetwork parts{
      .embed =
          [](at::Tensor const& x, at::Tensor const& t, tstitch::Condition const&) {
            return std::vector{x, t};
          },
      .blocks =
          [](std::vector<at::Tensor> const& embedded) {
            return embedded[0].add(embedded[1].view({-1, 1, 1, 1}), 1e-4);
          },
      .head = [](std::vector<at::Tensor> const&, at::Tensor const& feature) { return feature.mul(0.5); }};
  return tstitch::Network(parts, {.name = "in parts",
                                  .channels = 1,
                                  .height = 16,
                                  .width = 16,
                                  .timestep_type = tstitch::TimestepType::float32,
                                  .noise_schedule = noise_schedule});
}

// ---------------------------------------------------------------------------------------------------------- forecasts

void forecasts() {
  const tstitch::Forecast every_second = tstitch::ForecastEvery{.every = 2, .warm_up = 3};
  const tstitch::Forecast by_hand = tstitch::ForecastTable{.forecast = {false, false, false, true, true, false}};
  const tstitch::Forecast mine = [](tstitch::Step const& step, std::size_t, tstitch::ForecastPlace const& place) {
    return place.taken > 2 && !place.last && step.t < 500;
  };
  for (tstitch::Forecast const& forecast : {every_second, by_hand, mine}) {
    const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{}, {.steps = 6, .forecast = forecast}};
    sampler.sample({in_parts()}, {.count = 1});
    for (tstitch::PlannedStep const& planned : sampler.plan().steps) std::cout << planned.forecast.network;
    std::cout << " ";
  }
  std::cout << "forecast\n";
}

void terms_of_forecasts() {
  const tstitch::DDIM sampler{
      noise_schedule, tstitch::SingleNetwork{}, {.steps = 6, .forecast = tstitch::ForecastEvery{}}};
  const tstitch::Plan plan = sampler.plan();
  tstitch::StepForecast const& fourth = plan.steps[4].forecast;  // made of the computed steps before it
  for (tstitch::ForecastTerm const& term : fourth.conditional) {
    std::cout << "step " << term.step << " by " << term.weight << "; ";
  }
  std::cout << "\n";
}

void history_of_forecasts() {
  // What a sampler asks in each step: is it forecast, and from what?
  tstitch::ForecastHistory history;
  tstitch::Plan const plan = tstitch::DDIM{noise_schedule, tstitch::SingleNetwork{}, {.steps = 6}}.plan();
  for (tstitch::PlannedStep const& planned : plan.steps) {
    const tstitch::ForecastInput in{planned.step, planned.network, 1, tstitch::GuidedBy::nothing,
                                    planned.step.index == 5};
    std::cout << history.next(in, tstitch::ForecastEvery{}, {}).network;
  }
  std::cout << " after " << history.state().taken << " steps\n";
}

void run_in_a_file() {
  // What a run keeps for forecasts, taken apart and put together again.
  const tstitch::DDIM sampler{
      noise_schedule, tstitch::SingleNetwork{}, {.steps = 8, .forecast = tstitch::ForecastEvery{}}};
  tstitch::Trajectory run = sampler.begin({in_parts()}, {.count = 1});
  for (int i = 0; i < 4; ++i) sampler.advance({in_parts()}, run);

  tstitch::Trajectory again = run;
  tstitch::FeatureMemory::State const kept = run.memories[0].as<tstitch::FeatureMemory>().state();
  std::vector<tstitch::KeptSteps::Kept> tensors = kept.conditional.kept();  // steps and tensors, to be written
  again.memories[0].as<tstitch::FeatureMemory>() = tstitch::FeatureMemory({.conditional = tstitch::KeptSteps(tensors)});
  again.forecasts = tstitch::ForecastHistory(run.forecasts.state());
  for (tstitch::Trajectory* each : {&run, &again}) {
    while (!each->finished()) sampler.advance({in_parts()}, *each);
  }
  std::cout << "in a file: the same " << again.x.equal(run.x) << ", " << tensors.size() << " steps kept\n";
}

void measured_forecasts() {
  const tstitch::AnySampler sampler = tstitch::DDIM{noise_schedule, tstitch::SingleNetwork{}, {.steps = 8}};
  const tstitch::ForecastErrors errors = tstitch::measure_forecasts(sampler, {in_parts()}, {.count = 1}, 0);
  const tstitch::ForecastTable best = errors.best(5);
  std::cout << "best table:";
  for (const bool each : best.forecast) std::cout << " " << each;
  std::cout << "\n";
}

// ---------------------------------------------------------------------------------------------------------- pictures

void autoencoders() {
  const tstitch::AutoencoderInfo info{.name = "mine", .latent_channels = 3, .upsampling = 2, .latent_scale = 0.5};
  const tstitch::Autoencoder larger{
      .function = [](at::Tensor const& z) { return z.repeat_interleave(2, 2).repeat_interleave(2, 3); }, .info = info};
  const tstitch::Autoencoder smaller{
      .function = [](at::Tensor const& x) { return x.slice(2, 0, {}, 2).slice(3, 0, {}, 2); }, .info = info};
  const tstitch::Decoder decoder(larger);
  const tstitch::Encoder encoder(smaller);
  const at::Tensor latents = at::rand({2, 3, 24, 24});
  const at::Tensor pictures = decoder(latents, tstitch::Tiling{.rows = 1, .tile = 17});  // in tiles, which bound memory
  std::cout << "autoencoder: " << pictures.sizes() << ", back again "
            << (encoder(pictures).sub(latents).abs().max().item<double>() < 1e-5) << "\n";

  // Behind the sampling of the next batch.
  tstitch::DecodeQueue queue(decoder);
  queue.push(latents);
  const std::vector<tstitch::Picture> decoded = queue.pop();
  const tstitch::GridSize size = tstitch::grid_size(2, decoded[0].width, decoded[0].height, decoded[0].channels);
  std::cout << "grid: " << size.width << " x " << size.height << "\n";
}

void videos() {
  // Latents that have a scale and a shift for each channel, and a decoder that makes 4 (F - 1) + 1 frames of F.
  const tstitch::PerChannel mean{-0.7571, -0.7089, -0.9113}, scale{0.355, 0.688, 0.43};
  const tstitch::AutoencoderInfo info{.name = "mine",
                                      .latent_channels = 3,
                                      .upsampling = 1,
                                      .temporal_upsampling = 4,
                                      .latent_scale = scale,
                                      .latent_shift = mean};
  const tstitch::Decoder decoder(
      {.function = [](at::Tensor const& z) { return z.repeat_interleave(4, 2).slice(2, 3).tanh(); }, .info = info});
  const at::Tensor decoded = decoder(at::rand({1, 3, 3, 16, 24}));
  const tstitch::Video video = tstitch::to_videos(decoded)[0];
  tstitch::write_apng("video.png", video, 16);  // or write_mp4, or write_frames into a folder
  std::cout << "video: " << decoded.sizes() << " is " << video.size() << " frames\n";
}

void sums() {
  const at::Tensor x = at::ones({4}), y = at::ones({4});
  const at::Tensor sum = tstitch::WeightedSum().add(0.5, x).add(2, y).value();
  std::cout << "sum: " << sum[0].item<float>() << "\n";
}

// ---------------------------------------------------------------------------------------------------------- files

void loading(std::string const& path) {
  const tstitch::LoadOptions options{.device = at::kCPU, .backend = tstitch::Backend::torchscript};
  const auto loaded = tstitch::load_networks({path, path}, options);
  // Or by each kind of file itself.
  const auto scripted = tstitch::load_torchscript(path, tstitch::TorchScriptOptions{.warm_up_rows = {2}});
  const auto native = tstitch::load_dit(path, {}, tstitch::DiTOptions{.modulation_bytes = 1 << 20});
  std::cout << "loaded: " << loaded[0].info().name << ", " << scripted.info().name << ", forecasts "
            << native.forecasts() << "\n";
}

void pipelines(std::string const& path) {
  // A folder of one network, which needs no text encoder; export_pipeline.py writes larger ones.
  const std::filesystem::path folder = "reference.pipeline";
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(path, folder / "network.pt", std::filesystem::copy_options::overwrite_existing);
  std::ofstream(folder / "pipeline.txt") << "tstitch pipeline 1\nname one\nnetwork network.pt\nprofile recommended\n"
                                            "steps 10\ncondition size_ids height width 0 0\n";
  const tstitch::PipelineInfo info = tstitch::read_pipeline_info(folder.string());
  const tstitch::SizeCondition told = info.conditions.at(0);
  const tstitch::PipelineOptions options{.networks = {.device = at::kCPU}, .keep_text_encoders = false};
  const tstitch::Pipeline pipeline = tstitch::load_pipeline(folder.string(), options);
  const tstitch::PipelineRequest two{.labels = {3, 7}, .seed = 5, .steps = 2};
  std::cout << "pipeline: " << info.name << ", " << info.steps << " steps, " << told.values.size() << " numbers; "
            << pipeline.sampler(two).plan().steps.size() << " steps, " << pipeline.request(two).labels.size()
            << " pictures\n";
}

void calibration(std::string const& path) {
  // How large the inputs of a DiT's layers get, which it must know to compute in 8 bits.
  const auto largest = tstitch::largest_inputs(path, {}, tstitch::CalibrationOptions{.steps = 2, .images = 2});
  std::cout << "calibration: of " << largest.size() << " layers\n";
}

void quality_tables() {
  const tstitch::QualityRow row{.distance = 1.9, .sampler = "unipc", .steps = 20, .shares = {0.4, 0.6}};
  const tstitch::QualityTable table{.networks = {"small", "large"}, .guidance_scale = 1.5, .rows = {row}};
  tstitch::write_quality_table("quality.txt", table);
  std::cout << "quality table: again the same " << (tstitch::read_quality_table("quality.txt") == table) << "\n";
}

// ---------------------------------------------------------------------------------------------------------- studies

void budgets() {
  const tstitch::Budget budget = tstitch::budget_by_name("80ms");
  const std::vector<double> distances{1.9, 2.0, 2.2}, seconds{0.120, 0.075, 0.030};
  const tstitch::BestWithin found =
      tstitch::best_within(std::span(distances), budget.most(1), [&](std::size_t i) { return seconds[i]; });
  std::cout << "budget: way " << found.index.value() << " in " << found.cost << " s\n";
}

void best_way() {
  const std::int64_t batch = 4;
  const tstitch::Request request{.count = batch};
  std::vector<tstitch::AnySampler> samplers;
  for (const int steps : {12, 8}) {
    samplers.push_back(tstitch::DDIM{noise_schedule, tstitch::Stitch{.ratio = 0.4}, {.steps = steps}});
  }
  const std::vector<double> distances{1.9, 2.0};  // how good their pictures were found to be
  tstitch::RunTimes times(networks, request);
  const auto found = tstitch::best_within(distances, tstitch::budget_by_name("80ms").most(batch),
                                          [&](std::size_t i) { return times.predict(samplers[i]); });
  std::cout << "best way: known " << (found.cost > 0) << "\n";
}

void run_times() {
  std::remove("times.txt");
  const tstitch::KeptTimes kept{.file = "times.txt", .names = {"small", "large"}};
  tstitch::RunTimes times(networks, four, kept);
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 8}};
  const double predicted = times.predict(sampler), measured = times.measure(sampler);
  const tstitch::RunTimes in_the_next_program(networks, four, kept);
  std::cout << "times: " << (predicted > 0 && measured > 0) << ", kept " << in_the_next_program.is_measured(sampler)
            << "\n";
}

void files_of_times() {
  std::remove("numbers.txt");
  tstitch::TimesFile file("numbers.txt");
  file.add("a network on this machine", 0.0713);
  std::cout << "file of times: " << tstitch::TimesFile("numbers.txt").find("a network on this machine").value()
            << " s\n";
}

void batch_times() {
  const tstitch::Plan plan = tstitch::DDIM{noise_schedule, tstitch::Stitch{}, {.steps = 8}}.plan();
  const std::vector<tstitch::BatchTime> times =
      tstitch::time_batches(plan, networks, 4, tstitch::InputSizes{.shape = {1, 16, 16}});
  std::cout << "batches: from " << times[0].batch << " on, the fastest " << (tstitch::fastest_batch(times) <= 4)
            << "\n";
}

void agreement() {
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{}, {.steps = 10}};
  const tstitch::Agreement agreement = tstitch::measure_agreement(sampler, networks, four, 0, 1);
  const double most = tstitch::Agreement::means(agreement.cosines)[0];
  std::cout << "agreement: at first " << (most > 0.99) << ", suggested ratio " << agreement.ratio(0.3) << "\n";
}

void comparison() {
  const auto by = [](std::size_t network, int steps) {
    return tstitch::ComparedWay{tstitch::DDIM{noise_schedule, tstitch::SingleNetwork{network}, {.steps = steps}}};
  };
  const std::vector<double> away = tstitch::distances_from(by(1, 80), {by(1, 40), by(0, 40)}, networks, four);
  std::cout << "comparison: the large network is nearer to itself " << (away[0] < away[1]) << "\n";
}

void bounds() {
  const tstitch::Plan plan = tstitch::DDPM{noise_schedule, tstitch::Stitch{}, {.steps = 10}}.plan();
  const at::Tensor images =
      tstitch::noise({1, 2}, tstitch::NoiseAddress::initial(), {1, 16, 16}, at::kDouble).mul(0.5).add(0.3);
  const tstitch::VariationalBoundOptions options{.decoder = tstitch::BoundDecoder::density};
  const tstitch::VariationalBound bound = tstitch::variational_bound(plan, networks, images, options);
  std::cout << "bound: the large network's is lower "
            << (bound.of_network(1).mean().item<double>() < bound.of_network(0).mean().item<double>()) << "\n";
}

// ---------------------------------------------------------------------------------------------------- classes and
// texts

void class_mixtures() {
  // A network whose pictures have the number of their class.
  const tstitch::Network network(
      [](at::Tensor const& x, at::Tensor const&, tstitch::Condition const& condition) {
        return x.mul(0).add(condition.labels.view({-1, 1, 1, 1}));
      },
      {.prediction_type = tstitch::PredictionType::sample, .num_classes = 10, .noise_schedule = noise_schedule});
  const tstitch::ClassMixture quarter{.first = 2, .second = 6, .share = 0.25};
  const tstitch::ClassMixtures mixtures(network, {quarter});
  const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{}, {.steps = 4}};
  const tstitch::Samples samples = sampler.sample({mixtures.network()}, {.labels = {10}, .shape = {1, 2, 2}});
  std::cout << "class mixture: " << samples.images.mean().item<double>() << "\n";
}

void text_encoders() {
  // It knows of a text how long it is. load_text_encoder makes one of a file.
  using Texts = std::vector<std::string>;
  const tstitch::TextEncoderInfo info{.name = "lengths", .text_tokens = 4, .outputs = {{"text_embedding", {3}}}};
  const tstitch::TextEncoderParts parts{.encode =
                                            [](Texts const& texts) {
                                              const at::Tensor lengths = at::zeros({std::int64_t(texts.size()), 3});
                                              for (std::size_t i = 0; i < texts.size(); ++i) {
                                                lengths.select(0, std::int64_t(i)).fill_(double(texts[i].size()));
                                              }
                                              return std::vector{std::pair(std::string("text_embedding"), lengths)};
                                            },
                                        .tokenize =
                                            [](Texts const& texts) {
                                              const std::int64_t n = std::int64_t(texts.size());
                                              return tstitch::TextTokens{.ids = at::zeros({n, 4}, at::kLong),
                                                                         .mask = at::ones({n, 4}, at::kLong),
                                                                         .cut = at::zeros({n}, at::kLong)};
                                            },
                                        .info = info};
  const tstitch::TextEncoder encoder(parts);
  const tstitch::NamedCondition text = encoder.conditions({"a fox"}, "blurry").at(0);
  std::cout << "text encoder: " << text.name << " " << text.value.mean().item<double>() << " and "
            << text.null.mean().item<double>() << " in " << encoder.tokenize({"a fox"}).ids.size(1) << " tokens\n";
}

// ---------------------------------------------------------------------------------------------------------- profiles

void profiles_and_presets() {
  const tstitch::Profile<tstitch::DDIMUpdate> profile = tstitch::profile::diffusers_ddim(noise_schedule, 10);
  const tstitch::Preset preset = tstitch::preset::exact(noise_schedule);
  std::cout << profile.rule.name() << " of " << profile.options.steps << ", " << preset.profile.rule.name() << " of "
            << preset.profile.options.steps << ";";
  for (tstitch::NamedProfile const& each : tstitch::profiles()) std::cout << " " << each.name;
  for (tstitch::NamedPreset const& each : tstitch::presets()) std::cout << " " << each.name;
  std::cout << "\n";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  for (const auto example : {levels,
                             spacings,
                             spacings_by_name,
                             routings,
                             reference_routings,
                             routings_by_name,
                             plans,
                             samplers,
                             update_rules,
                             rules_by_name,
                             adaptive_steps,
                             own_rules,
                             requests,
                             guidance_scales,
                             gradients,
                             conditions,
                             one_evaluation,
                             masks,
                             random_numbers,
                             observers,
                             progress,
                             memories,
                             forecasts,
                             terms_of_forecasts,
                             history_of_forecasts,
                             run_in_a_file,
                             measured_forecasts,
                             autoencoders,
                             videos,
                             sums,
                             quality_tables,
                             budgets,
                             best_way,
                             run_times,
                             files_of_times,
                             batch_times,
                             agreement,
                             comparison,
                             bounds,
                             class_mixtures,
                             text_encoders,
                             profiles_and_presets}) {
    example();
  }
  loading(argv[1]);
  pipelines(argv[1]);
  calibration(argv[1]);
} catch (std::exception const& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
