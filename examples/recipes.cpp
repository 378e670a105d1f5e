// What the pages of docs/ show, one function for each, with the bundled pair: recipes small.pt large.pt
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <tstitch/file/fingerprint.hpp>
#include <tstitch/file/trajectory_file.hpp>
#include <tstitch/load.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/method/inversion.hpp>
#include <tstitch/output/image.hpp>
#include <tstitch/peer/preset.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// The library writes pictures and reads none. This is how a program may read one.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#if __has_include(<stb_image.h>)
#include <stb_image.h>
#else
#include <stb/stb_image.h>
#endif

namespace {

using Networks = std::vector<tstitch::Network>;

void plan() {
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}};
  std::cout << sampler.plan({.scale = 2.0});
  for (tstitch::PlannedStep const& planned : sampler.plan().steps) {
    if (planned.network == 0) std::cout << "the small network takes t = " << planned.step.t << "\n";
  }
}

void schedules() {
  const auto noise_schedule = tstitch::NoiseSchedule::linear();
  const auto every_third = [](tstitch::Step const& step) -> std::size_t { return step.index % 3 == 0 ? 1 : 0; };
  const tstitch::DDIM sampler{noise_schedule, every_third, {.steps = 10}};
  std::cout << "every third step: " << sampler.plan().calls()[1] << " of the large network\n";

  const tstitch::DDIM three{noise_schedule, tstitch::Fractions{{0.4, 0.4, 0.2}}, {.steps = 10}};
  const tstitch::DDIM by_time{noise_schedule, tstitch::ByTimestep{{600}}, {.steps = 10}};
  const tstitch::DDIM by_noise{noise_schedule, tstitch::ByLogSnr{{-2.0}}, {.steps = 10}};
  std::cout << "three networks: " << three.plan().calls()[2] << ", by timestep: " << by_time.plan().calls()[0]
            << ", by noise: " << by_noise.plan().calls()[0] << "\n";
}

void guidance(Networks const& networks) {
  const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.5}, {.steps = 4}};
  const auto draw = [&](tstitch::Guidance const& guidance) {
    return sampler.sample(networks, {.labels = {3}, .guidance = guidance}).images;
  };
  const at::Tensor plain = draw({.scale = 2.0});
  const at::Tensor for_each = draw({.scale = {1.5, 3.0}});                   // a scale for each network
  const at::Tensor middle = draw({.scale = 2.0, .begin = 0.2, .end = 0.8});  // in a part of the steps
  const at::Tensor rescaled = draw({.scale = 5.0, .rescale = 0.7});
  const at::Tensor projected = draw({.scale = 5.0, .projected = tstitch::ProjectedGuidance{.momentum = -0.5}});
  const at::Tensor by_small = draw({.scale = {1.0, 2.0}, .guide_network = 0});  // autoguidance

  int different = 0;
  for (at::Tensor const& x : {for_each, middle, rescaled, projected, by_small}) different += !x.equal(plain);
  std::cout << "guidance: " << different << " of 5 differ\n";
}

void gradient_guidance() {
  // The exact network for data N(0.3, 0.5^2): predicts the noise in x. Callables have gradients.
  const auto noise_schedule = tstitch::NoiseSchedule::linear();
  const tstitch::Network network(
      [=](at::Tensor const& x, at::Tensor const& t) {
        const auto [alpha, sigma] = noise_schedule.at(t.select(0, 0).item<double>());
        return x.sub(alpha * 0.3).mul(sigma / (alpha * alpha * 0.25 + sigma * sigma));
      },
      {.name = "exact", .channels = 1, .height = 32, .width = 32, .timestep_type = tstitch::TimestepType::float32});
  const tstitch::DDIM sampler{noise_schedule, tstitch::SingleNetwork{}, {.steps = 20}};

  const auto log_density = [](at::Tensor const& x_0, at::Tensor const&, tstitch::Condition const&) {
    return x_0.sub(1).square().sum({1, 2, 3}).mul(-1);  // [n], up to a constant: the nearer to 1, the likelier
  };
  const auto plain = sampler.sample({network}, {.count = 1});
  const auto guided = sampler.sample({network}, {.count = 1, .gradient = {.log_density = log_density, .scale = 0.5}});
  std::cout << "gradient: mean " << (plain.images.mean().item<double>() < guided.images.mean().item<double>()) << "\n";
}

at::Tensor read_picture(std::string const& path) {
  int width = 0, height = 0, channels = 0;
  stbi_uc* const pixels = stbi_load(path.c_str(), &width, &height, &channels, 3);
  if (!pixels) throw std::runtime_error(path + ": must be a picture, got " + stbi_failure_reason());
  const at::Tensor bytes = at::from_blob(pixels, {1, height, width, 3}, stbi_image_free, at::kByte);
  return bytes.permute({0, 3, 1, 2}).to(at::kFloat).div(127.5).sub(1).contiguous();  // [1, 3, H, W] in [-1, 1]
}

void editing(Networks const& networks) {
  const auto noise_schedule = networks[0].noise_schedule();
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{.ratio = 0.5}, {.steps = 6}};
  const at::Tensor dog = sampler.sample(networks, {.labels = {5}, .seed = 1, .guidance = {.scale = 2.0}}).images;
  tstitch::write_grid("dog.png", dog);

  // From a picture: the more strength, the less of it is left.
  const at::Tensor picture = read_picture("dog.png");
  const auto cat =
      sampler.sample(networks, {.labels = {3}, .guidance = {.scale = 2.0}, .initial_image = picture, .strength = 0.6});
  tstitch::write_grid("cat.png", cat.images);

  // A mask: 1 where the picture is drawn anew, 0 where it stays.
  at::Tensor mask = at::zeros({1, 1, 32, 32});
  mask.narrow(3, 16, 16).fill_(1);
  const auto half =
      sampler.sample(networks, {.labels = {3}, .guidance = {.scale = 2.0}, .initial_image = picture, .mask = mask});
  tstitch::write_grid("half.png", half.images);

  // Inversion: the noise from which DDIM draws this picture, to draw it again with another class.
  const tstitch::Inversion invert{noise_schedule, tstitch::Stitch{.ratio = 0.5}, {.steps = 6}, tstitch::DDIMUpdate{}};
  const at::Tensor noise = invert.sample(networks, {.labels = {5}, .initial_image = picture}).images;
  const at::Tensor again = sampler.sample(networks, {.labels = {5}, .initial_noise = noise}).images;
  const at::Tensor horse = sampler.sample(networks, {.labels = {7}, .initial_noise = noise}).images;

  const auto distance = [&](at::Tensor const& x) { return x.cpu().sub(picture).square().mean().sqrt().item<double>(); };
  std::cout << "editing: read " << (distance(dog.clamp(-1, 1)) < 0.01) << ", kept half "
            << half.images.cpu().narrow(3, 0, 16).equal(picture.narrow(3, 0, 16)) << ", inverted "
            << (distance(again) < distance(cat.images) && distance(again) < distance(horse)) << "\n";
}

void many_pictures(Networks const& networks) {
  // A batch at a time, so that what is finished is written, and a batch that fails costs no other.
  const tstitch::DPMSolver sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.5}, {.steps = 3}};
  const std::uint64_t pictures = 8, batch = 4;
  for (std::uint64_t first = 0; first < pictures; first += batch) {
    if (std::ifstream("batch" + std::to_string(first) + ".png")) continue;  // drawn by an earlier run
    const std::vector<std::int64_t> labels(std::min(batch, pictures - first), 3);
    const auto samples = sampler.sample(networks, {.labels = labels, .seed = first, .guidance = {.scale = 2.0}});
    tstitch::write_grid("batch" + std::to_string(first) + ".png", samples.images);
  }

  // A picture depends on its seed alone, up to the rounding of matrix products, and with pad_batches to the last bit.
  const tstitch::Request one{.labels = {3}, .seed = 6, .batch_size = 8, .pad_batches = true};
  const tstitch::Request all{.labels = std::vector<std::int64_t>(8, 3), .batch_size = 8, .pad_batches = true};
  const bool same = sampler.sample(networks, one).images[0].equal(sampler.sample(networks, all).images[6]);
  std::cout << "many pictures: the same bits " << same << "\n";
}

void take_apart(Networks const& networks) {
  // A run is a value: take some steps, copy it, and let another sampler finish the copy.
  const auto noise_schedule = networks[0].noise_schedule();
  const tstitch::DDIM small_first{noise_schedule, tstitch::Stitch{.ratio = 0.5}, {.steps = 4}};
  const tstitch::DDIM large_alone{noise_schedule, tstitch::Stitch{.ratio = 0.0}, {.steps = 4}};
  tstitch::Trajectory run = small_first.begin(networks, {.labels = {3}, .seed = 7});
  small_first.advance(networks, run);
  tstitch::Trajectory fork = run;
  while (!run.finished()) small_first.advance(networks, run);
  while (!fork.finished()) large_alone.advance(networks, fork);

  const at::Tensor whole = small_first.sample(networks, {.labels = {3}, .seed = 7}).images;
  std::cout << "taken apart: the same " << run.x.equal(whole) << ", the fork differs " << !fork.x.equal(whole) << "\n";
}

void go_on(Networks const& networks, std::vector<std::string> const& files) {
  // A run that was stopped goes on from its file, in another process, too, to the bits that it would have had.
  const tstitch::DPMSolver sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.5}, {.steps = 4}};
  std::vector<std::string> fingerprints;  // another network is refused
  for (std::string const& file : files) fingerprints.push_back(tstitch::fingerprint_text(file));
  tstitch::Trajectory run = sampler.begin(networks, {.labels = {3}, .seed = 7});
  while (run.next < 3) sampler.advance(networks, run);
  tstitch::save_trajectory("horse.run", sampler, run, fingerprints, tstitch::TrajectoryNotes{.text = "a horse"});

  const tstitch::TrajectoryFile file("horse.run");
  const tstitch::GoOnWith with{.fingerprints = fingerprints};
  const tstitch::Samples samples = sampler.finish(networks, file.trajectory(sampler, networks, with));
  std::cout << file.notes().text << " after " << file.next() << " of " << file.count() << " steps: the same "
            << samples.images.equal(sampler.finish(networks, run).images) << "\n";
}

void watch(Networks const& networks) {
  // An observer sees every step, and may end the run. What exists then is returned.
  const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 0.5}, {.steps = 4}};
  const auto observer = [](tstitch::StepReport const& report) {
    std::cout << "step " << report.step.index << " by network " << report.network << "\n";
    return report.step.index < 1 ? tstitch::Control::proceed : tstitch::Control::cancel;
  };
  const auto samples = sampler.sample(networks, {.labels = {3}}, observer);
  std::cout << "finished: " << samples.finished << "\n";
}

void errors(Networks const& networks) {
  try {
    const tstitch::DDIM sampler{networks[0].noise_schedule(), tstitch::Stitch{.ratio = 1.5}, {.steps = 4}};
  } catch (std::invalid_argument const& error) {
    std::cout << error.what() << "\n";  // what was asked for is wrong
  }
  try {
    tstitch::load_networks({"nowhere.pt"});
  } catch (std::runtime_error const& error) {
    std::cout << error.what() << "\n";  // a file, a network or the machine is
  }
  for (std::string const& sentence : tstitch::diagnostics()) std::cout << "note: " << sentence << "\n";
}

void presets(Networks const& networks) {
  const auto preset = tstitch::preset::fastest(networks.back().noise_schedule());
  const auto sampler = tstitch::make_sampler(preset);
  const tstitch::Request request{.labels = {3}, .guidance = {.scale = 1.5}};
  const auto samples = sampler.sample(networks, tstitch::apply(preset, request));
  std::cout << "preset: " << sampler.plan().steps.size() << " steps, " << samples.finished_images << " picture\n";
}

void forecasts(Networks const& networks) {
  const auto noise_schedule = networks[0].noise_schedule();
  const tstitch::DDIM sampler{noise_schedule,
                              tstitch::Stitch{.ratio = 0.4},
                              {.steps = 50, .forecast = tstitch::ForecastEvery{.every = 2, .first_network = 1}}};
  const tstitch::Guidance guidance{.scale = 1.5, .forecast = tstitch::ForecastEvery{.every = 2, .warm_up = 2}};
  std::cout << sampler.plan(guidance);
  const auto samples = sampler.sample(networks, {.labels = {3}, .guidance = guidance});
  std::cout << "forecasts: " << samples.finished_images << " picture\n";
}

void profiles(Networks const& networks) {
  const tstitch::Request request{.labels = {3}, .guidance = {.scale = 1.5}};
  const auto profile = tstitch::profile::diffusers_dpmpp(networks.back().noise_schedule(), 4);
  const auto sampler = tstitch::make_sampler(profile, tstitch::Stitch{.ratio = 0.4});
  const auto samples = sampler.sample(networks, tstitch::apply(profile, request));  // the channels that it guides

  // The routing of T-Stitch's code under that program, and the noise of torch.manual_seed(7).
  const auto as_published = tstitch::make_sampler(profile, 0.4);
  const auto as_seeded = as_published.sample(networks, tstitch::apply(profile, request, 7));
  std::cout << "profile: differs " << !as_seeded.images.equal(samples.images) << "\n";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return 2;
  plan();
  schedules();
  gradient_guidance();

  const auto networks = tstitch::load_networks({argv[1], argv[2]});
  guidance(networks);
  editing(networks);
  many_pictures(networks);
  take_apart(networks);
  go_on(networks, {argv[1], argv[2]});
  watch(networks);
  errors(networks);
  presets(networks);
  forecasts(networks);
  profiles(networks);
} catch (std::exception const& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
