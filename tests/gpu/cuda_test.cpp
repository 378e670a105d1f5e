// What only a GPU can show. Without one this prints why it is skipped and ends.
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/tanh.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <tstitch/engine/cuda_graph.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/output/decode_queue.hpp>
#include <tstitch/study/calibration.hpp>
#include <tstitch/tstitch.hpp>

#include <cstdio>
#include <cstdlib>

#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);

const at::Device cuda(at::kCUDA, 0);

std::vector<Network> pair(at::ScalarType type) {
  return load_torchscript_networks({TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"},
                                   {.device = cuda, .dtype = type});
}

/// Makes every wait for the GPU an error while it lives.
struct NoWaiting {
  NoWaiting() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR); }
  ~NoWaiting() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED); }
};

}  // namespace

TEST_CASE("noise is the CPU's") {
  std::vector<std::uint64_t> seeds;
  for (std::uint64_t i = 0; i < 64; ++i) seeds.push_back(i * 0x9E3779B97F4A7C15);
  for (NoiseAddress address : {NoiseAddress::initial(), NoiseAddress::of_step(17)}) {
    const at::Tensor host = noise(seeds, address, {3, 32, 32}, at::kFloat);
    const at::TensorOptions on_gpu = at::TensorOptions().dtype(at::kFloat).device(cuda);
    CHECK(noise(seeds, address, {3, 32, 32}, on_gpu).cpu().equal(host));
    CHECK(noise({seeds[5]}, address, {3, 32, 32}, on_gpu).cpu().equal(host.narrow(0, 5, 1)));
  }
  // It is made there, of more images than a kernel takes at once, and of sizes that are no multiple of anything.
  REQUIRE(tstitch::detail::kernel_on<tstitch::detail::NoiseKernel>(cuda));
  std::vector<std::uint64_t> many;
  for (std::uint64_t i = 0; i < 700; ++i) many.push_back(~i);
  for (std::vector<std::int64_t> const& shape : {std::vector<std::int64_t>{1, 1, 1}, {3, 5, 7}, {1, 32, 32}}) {
    const at::Tensor made =
        noise(many, NoiseAddress::of_step(3, 2), shape, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA));
    CHECK(made.cpu().equal(noise(many, NoiseAddress::of_step(3, 2), shape, at::kFloat)));
  }
  // The host's word for words: 100 million values.
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    const std::vector<std::int64_t> shape{1, 2000, 2000};
    const at::TensorOptions on_gpu = at::TensorOptions().dtype(at::kFloat).device(cuda);
    REQUIRE(noise({seed}, NoiseAddress::initial(), shape, on_gpu)
                .cpu()
                .equal(noise({seed}, NoiseAddress::initial(), shape, at::kFloat)));
  }
  const at::TensorOptions exact = at::TensorOptions().dtype(at::kDouble).device(cuda);
  CHECK(noise(seeds, NoiseAddress::initial(), {3, 8, 8}, exact)
            .cpu()
            .equal(noise(seeds, NoiseAddress::initial(), {3, 8, 8}, at::kDouble)));
}

TEST_CASE("weighted sums have the bits of torch's operations") {
  REQUIRE(tstitch::detail::kernel_on<tstitch::detail::SumKernel>(cuda));
  const auto normal = [](std::int64_t n, std::int64_t channels, std::int64_t width, std::uint64_t seed) {
    std::vector<std::uint64_t> seeds;
    for (std::int64_t i = 0; i < n; ++i) seeds.push_back(seed + std::uint64_t(i));
    return noise(seeds, NoiseAddress::initial(), {channels, width, width},
                 at::TensorOptions().dtype(at::kFloat).device(cuda));
  };
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (const std::int64_t n : {1, 3, 64}) {
      for (const std::int64_t width : {1, 3, 7, 32}) {
        // A network's output of both halves of guidance, with a learned variance behind the picture.
        const at::Tensor output = normal(2 * n, 8, width, 5).to(type), x = normal(n, 4, width, 500);
        const at::Tensor with = output.narrow(0, 0, n).narrow(1, 0, 4),
                         without = output.narrow(0, n, n).narrow(1, 0, 4);
        WeightedSum sum;
        sum.add(1.5, with).add(-0.5, without).scale(-0.731).add(1.913, x).add(0.25, normal(n, 4, width, 900));
        const at::Tensor got = sum.value(at::kFloat);
        INFO(at::toString(type) << " " << n << " " << width);
        REQUIRE(got.is_contiguous());
        REQUIRE(got.equal(sum.by_operations(at::kFloat)));
        REQUIRE(weighted_sum(0.3, x, 0.7, with.to(at::kFloat))
                    .equal(WeightedSum().add(0.3, x).add(0.7, with.to(at::kFloat)).by_operations(at::kFloat)));
      }
    }
  }
  // Columns that lie apart, numbers of terms and types that it does not take, go through the operations.
  const at::Tensor x = normal(2, 4, 8, 1), y = normal(2, 4, 8, 2).transpose(2, 3);
  CHECK(weighted_sum(1, x, 2, y).sub(x.add(y, 2)).abs().max().item<double>() < 1e-6);
  CHECK(weighted_sum(1, x.to(at::kDouble), 2, y.to(at::kDouble)).scalar_type() == at::kDouble);
  WeightedSum many;
  at::Tensor expected = x.mul(0);
  for (int k = 0; k < 12; ++k) {
    many.add(k, normal(2, 4, 8, std::uint64_t(k)));
    expected.add_(normal(2, 4, 8, std::uint64_t(k)), k);
  }
  CHECK(many.value().sub(expected).abs().max().item<double>() < 1e-4);
}

TEST_CASE("several tensors are copied by one kernel, whatever they are") {
  REQUIRE(tstitch::detail::kernel_on<tstitch::detail::CopyKernel>(cuda));
  const auto normal = [](std::vector<std::int64_t> const& shape) {
    return noise({7}, NoiseAddress::initial(), {1, 1, 200000}, at::TensorOptions().dtype(at::kFloat).device(cuda))
        .flatten()
        .narrow(0, 0, c10::multiply_integers(shape))
        .view(shape)
        .clone();
  };
  const at::Tensor x = normal({3, 4, 32, 32}), small = normal({2, 4, 2, 2});
  std::vector<at::Tensor> from{
      x.to(at::kHalf),
      tstitch::detail::to_device({1, 2, 3}, cuda),     // 24 bytes
      normal({5, 7}),                                  // no whole number of 16
      small.unsqueeze(0).expand({2, -1, -1, -1, -1}),  // the same rows twice
      normal({1, 3}).expand({2, 3}),                   // which are no whole number of 16
      x.transpose(1, 2),                               // lies in another way
      normal({9}).narrow(0, 1, 8),                     // begins between 16 bytes
      tstitch::detail::to_device({4, 5}, at::kCPU),    // is elsewhere
      normal({0, 3}),
      normal({3, 5, 31, 33}),  // many blocks and some bytes
      normal({1}),
      normal({2, 200, 64}),
  };
  for (int i = 0; i < 12; ++i) from.push_back(normal({17}).add(i));  // more than the kernel takes
  std::vector<at::Tensor> to;
  for (at::Tensor const& each : from) {
    to.push_back(at::full(each.sizes(), 99, at::TensorOptions(cuda).dtype(each.scalar_type())));
  }
  to[0] = to[0].transpose(2, 3).contiguous().transpose(2, 3);
  // Those of 24 and 140 bytes, the same rows twice, nothing, and the three behind it.
  CHECK((*tstitch::detail::kernel_on<tstitch::detail::CopyKernel>(cuda))(to, from) == 7);
  for (std::size_t i = 0; i < from.size(); ++i) {
    INFO("tensor " << i);
    CHECK(to[i].cpu().equal(from[i].cpu()));
  }
}

TEST_CASE("the loop never waits for the GPU") {
  const std::vector<Network> networks = pair(at::kHalf);
  const NoiseSchedule& schedule = networks[0].noise_schedule();
  const Request plain{.labels = {0, 1, 2, 3}, .seed = 3, .guidance = {.scale = 1.5, .begin = 0.1, .end = 0.8}};
  const auto check = [&](char const* name, auto const& sampler, Request const& request) {
    sampler.sample(networks, request);  // TorchScript compiles, and waits, in its first runs of a shape
    sampler.sample(networks, request);
    Trajectory trajectory = sampler.begin(networks, request);
    {
      const NoWaiting no_waiting;
      if (!request.mask.defined()) trajectory = sampler.begin(networks, request);  // a mask's values are looked at
      while (!trajectory.finished()) sampler.advance(networks, trajectory);
    }
    CHECK(trajectory.x.isfinite().all().template item<bool>());
    std::printf("%s: no waits in %d steps\n", name, trajectory.count);
  };
  const SamplingOptions options{.steps = 10};
  const Stitch half{.ratio = 0.5};
  check("DDIM", DDIM{schedule, half, options}, plain);
  check("DDIM with noise", DDIM{schedule, half, options, {.eta = 1}}, plain);
  check("DDPM", DDPM{schedule, half, options}, plain);
  check("DPM-Solver++", DPMSolver{schedule, half, options, {.order = 3}}, plain);
  check("SDE-DPM-Solver++", DPMSolver{schedule, half, options, {.eta = 1}}, plain);
  check("singlestep", DPMSolverSinglestep{schedule, half, options, {.order = 3}}, plain);
  check("2S ancestral", DPMSolver2SAncestral{schedule, half, options}, plain);
  check("stochastic DPM-Solver++", DPMSolverSDE{schedule, half, options}, plain);
  check("UniPC", UniPC{schedule, half, options, {.order = 3}}, plain);
  check("DEIS", DEIS{schedule, half, options}, plain);
  check("LMS", LMS{schedule, half, options}, plain);
  check("PNDM", PNDM{schedule, half, options, {PNDMStart::runge_kutta}}, plain);
  check("Euler, churned", Euler{schedule, half, options, {.churn = {.s_churn = 4}}}, plain);
  check("Euler ancestral", EulerAncestral{schedule, half, options}, plain);
  check("Heun", Heun{schedule, half, options}, plain);
  check("DPM-Solver-2", DPM2{schedule, half, options, {.eta = 0.5}}, plain);
  check("LCM", LCM{schedule, half, options}, plain);
  SamplingOptions again = options;
  again.at_switch = SwitchPolicy::re_evaluate;
  check("evaluating again at the switch", DPMSolver{schedule, half, again}, plain);
  SamplingOptions dynamic = options;
  dynamic.thresholding = Thresholding::dynamic();
  check("dynamic thresholding", DDIM{schedule, half, dynamic}, plain);

  const DDIM sampler{schedule, half, options};
  const auto guided = [&](char const* name, Guidance const& guidance) {
    Request request = plain;
    request.guidance = guidance;
    check(name, sampler, request);
  };
  guided("rescaled guidance", {.scale = 2, .rescale = 0.7});
  guided("projected guidance", {.scale = 2, .projected = ProjectedGuidance{.momentum = -0.5}});
  guided("autoguidance", {.scale = 2, .guide_network = 0});
  Request edited = plain;
  edited.initial_image =
      noise({1, 2, 3, 4}, NoiseAddress::of_step(5), {3, 32, 32}, at::TensorOptions().dtype(at::kFloat).device(cuda));
  check("inversion", Inversion{schedule, half, options, DDIMUpdate{}}, edited);
  edited.strength = 0.6;
  edited.mask = edited.initial_image.gt(0);
  check("a mask", sampler, edited);
  Request pushed = plain;
  pushed.gradient = {.log_density = [](at::Tensor const& x, auto const&...) { return x.square().flatten(1).sum(1); },
                     .scale = 0.1};
  check("gradient guidance", sampler, pushed);

  // The debug mode itself works: a read of a value is refused under it.
  const at::Tensor value = tstitch::detail::to_device({1}, cuda);
  const NoWaiting no_waiting;
  CHECK_THROWS_AS(value.item<std::int64_t>(), std::exception);
}

TEST_CASE("float32 pictures are the CPU's") {
  const std::vector<Network> on_gpu = pair(at::kFloat);
  const std::vector<Network> on_cpu =
      load_torchscript_networks({TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"});
  const auto check = [&](auto const& sampler) {
    const Request request{.labels = {0, 7}, .seed = 7, .guidance = {.scale = 2}};
    const at::Tensor gpu_images = sampler.sample(on_gpu, request).images.cpu();
    const double difference =
        gpu_images.sub(sampler.sample(on_cpu, request).images).abs().max().template item<double>();
    // Matrix products add up in another order; ten steps and guidance make more of it.
    CHECK(difference < 5e-3);
    std::printf("largest difference of a pixel in [-1, 1]: %.2e\n", difference);
  };
  check(DDIM{on_cpu[0].noise_schedule(), Stitch{}, {.steps = 10}});
  check(DDPM{on_cpu[0].noise_schedule(), Stitch{}, {.steps = 10}});
}

TEST_CASE("cuda without an index is the GPU that is current") {
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x; }, {}, at::kCUDA);
  CHECK(network.device() == at::Device(at::kCUDA, c10::cuda::current_device()));
  const std::string file = TSTITCH_MODELS "/cifar10_dit_small.pt";
  const Request request{.labels = {3}, .seed = 7};
  const auto drawn = [&](at::Device device) {
    const std::vector<Network> networks{load_dit(file, {.device = device})};
    return DDIM{networks[0].noise_schedule(), SingleNetwork{}, {.steps = 3}}.sample(networks, request).images;
  };
  CHECK(drawn(at::kCUDA).equal(drawn(cuda)));
  CHECK(default_device() == cuda);
}

TEST_CASE("seed 7 is one picture in batches of 1, 3 and 64, bit for bit when batches are padded") {
  for (at::ScalarType type : {at::kFloat, at::kHalf}) {
    const std::vector<Network> networks = pair(type);
    const auto check = [&](auto const& sampler) {
      Request alone{.labels = {3}, .seed = 7, .guidance = {.scale = 1.5}, .batch_size = 64, .pad_batches = true};
      const at::Tensor padded = sampler.sample(networks, alone).images;
      for (std::int64_t batch : {1, 3, 64}) {
        for (std::int64_t position = 0; position < batch; position += batch == 64 ? 9 : 1) {
          Request many = alone;
          many.labels.assign(std::size_t(batch), 5);
          many.seeds.clear();
          for (std::int64_t i = 0; i < batch; ++i) many.seeds.push_back(std::uint64_t(100 + i));
          many.labels[std::size_t(position)] = 3;
          many.seeds[std::size_t(position)] = 7;
          REQUIRE(sampler.sample(networks, many).images.narrow(0, position, 1).equal(padded));
          if (type != at::kFloat) continue;
          many.batch_size = 0;
          many.pad_batches = false;
          REQUIRE(sampler.sample(networks, many)
                      .images.narrow(0, position, 1)
                      .sub(padded)
                      .abs()
                      .max()
                      .template item<double>() < 1e-4);
        }
      }
    };
    check(DDIM{networks[0].noise_schedule(), Stitch{}, {.steps = 5}});
    check(DDPM{networks[0].noise_schedule(), Stitch{}, {.steps = 5}});
  }
}

TEST_CASE("batches are decoded behind the sampler, without waits, and are the CPU's") {
  const AutoencoderInfo info{.name = "test", .latent_channels = 3, .upsampling = 2, .latent_scale = 0.5};
  const at::Tensor mix = noise({1}, NoiseAddress::initial(), {12, 3}, at::kFloat).view({12, 3, 1, 1}).div(4);
  const auto decoder = [&](at::Device device) {
    const auto decode = [weight = mix.to(device)](at::Tensor const& x) {
      // Many passes, so that the next batch is sampled while this one is decoded.
      at::Tensor y = x;
      for (int i = 0; i < 50; ++i) y = at::tanh(y.mul(1.5));
      return at::pixel_shuffle(at::conv2d(y, weight), 2);
    };
    return Decoder({decode, info, device});
  };
  const auto latents = [](std::uint64_t seed, at::Device device) {
    return noise({seed, seed + 100}, NoiseAddress::initial(), {3, 96, 96},
                 at::TensorOptions().dtype(at::kFloat).device(device));
  };
  DecodeQueue queue(decoder(cuda), {.rows = 1});
  queue.push(latents(0, cuda));  // allocates pinned memory, cuDNN chooses
  queue.pop();
  {
    const NoWaiting no_waiting;
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      at::Tensor x = latents(seed, cuda);
      queue.push(x);
      x = at::Tensor();  // its memory must not go to what comes next while the decoder reads it
      at::Tensor other = at::full({2, 3, 96, 96}, 9.0f, at::TensorOptions().device(cuda));
    }
  }
  REQUIRE(queue.size() == 8);
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    const std::vector<Picture> got = queue.pop(), expected = to_pictures(decoder(at::kCPU)(latents(seed, at::kCPU)));
    REQUIRE(got.size() == expected.size());
    int off = 0, most = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      REQUIRE(got[i].pixels.size() == expected[i].pixels.size());
      for (std::size_t k = 0; k < got[i].pixels.size(); ++k) {
        const int difference = std::abs(int(got[i].pixels[k]) - int(expected[i].pixels[k]));
        off += difference != 0;
        most = std::max(most, difference);
      }
    }
    // TF32 in the convolution moves values near a rounding edge, and 1e-3 of [-1, 1] is an eighth of a level.
    CHECK(most <= 1);
    CHECK(off < int(got.size() * got[0].pixels.size()) / 5);
  }
}

namespace {

const std::string small_file = TSTITCH_MODELS "/cifar10_dit_small.pt";
const std::string large_file = TSTITCH_MODELS "/cifar10_dit_large.pt";

at::Tensor normal(std::int64_t n, std::vector<std::int64_t> const& shape, std::uint64_t first = 0) {
  std::vector<std::uint64_t> seeds;
  for (std::int64_t i = 0; i < n; ++i) seeds.push_back(first + std::uint64_t(i));
  return noise(seeds, NoiseAddress::initial(), shape, at::TensorOptions().dtype(at::kFloat).device(cuda));
}

Condition labelled(std::vector<std::int64_t> const& labels) {
  return {.labels = tstitch::detail::to_device(labels, cuda), .host_labels = labels};
}

at::Tensor times(std::int64_t t, std::int64_t n) {
  return tstitch::detail::to_device(std::vector<std::int64_t>(std::size_t(n), t), cuda);
}

/// The root of the mean squared difference, relative to that of what is expected.
double rms(at::Tensor const& got, at::Tensor const& expected) {
  const at::Tensor a = got.to(at::kDouble), b = expected.to(at::kDouble);
  return std::sqrt(a.sub(b).square().mean().item<double>() / b.square().mean().item<double>());
}

std::int64_t allocated() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0].current;
}

}  // namespace

TEST_CASE("the kernel of the DiT engine computes what torch's operations compute") {
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    // Widths of one warp and less, of whole and of broken warps, and of several chunks a thread.
    for (const std::int64_t width : {8, 64, 128, 256, 384, 1152, 2056, 8192}) {
      const std::int64_t images = 3, tokens = 7;
      const at::Tensor x = normal(images, {tokens, width}).mul(3).add(1).to(type);
      const at::Tensor y = normal(images, {tokens, width}, 10).to(type);
      const at::Tensor modulation = normal(images, {9, width}, 20).to(type);
      for (auto const& [added, gate] : {std::pair{y, 2}, {at::Tensor(), 2}, {y.narrow(0, 1, 1), -1}}) {
        const at::Tensor mine = x.clone(), exact = x.to(at::kDouble);
        const auto in_double = [](at::Tensor const& of) { return of.defined() ? of.to(at::kDouble) : of; };
        tstitch::detail::ResidualNorm asked{
            .x = mine, .y = added, .modulation = modulation, .gate = gate, .shift = 5, .scale = 7, .eps = 1e-6};
        const at::Tensor got = tstitch::detail::residual_norm_modulate(asked);
        asked.x = exact;
        asked.y = in_double(added);
        asked.modulation = in_double(modulation);
        asked.plain = true;
        const at::Tensor expected = tstitch::detail::residual_norm_modulate(asked);
        // A rounding of the type at the sum, and one at the end.
        const double unit = type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 8e-3;
        INFO(at::toString(type) << " " << width);
        REQUIRE(rms(mine, exact) < unit);
        REQUIRE(rms(got, expected) < 2 * unit);
      }
    }
  }
}

TEST_CASE("the kernel adds two residuals, of tokens before images, and of several tokens a block") {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (auto const& [images, tokens] : {std::pair<std::int64_t, std::int64_t>{3, 7}, {2, 2051}}) {
      const std::int64_t width = 192;
      const auto tensor = [&](std::int64_t seed) { return normal(images, {tokens, width}, seed).to(type); };
      const at::Tensor x = tensor(0), y = tensor(10), z = tensor(20),
                       modulation = normal(images, {9, width}, 30).to(type);
      const auto first = [](at::Tensor const& of) { return of.transpose(0, 1).contiguous(); };
      const tstitch::detail::ResidualNorm asked{.x = x.clone(),
                                                .y = y,
                                                .modulation = modulation,
                                                .gate = 2,
                                                .shift = 5,
                                                .scale = 7,
                                                .eps = 1e-6,
                                                .z = z,
                                                .gate_z = 1};
      tstitch::detail::ResidualNorm turned = asked, exact = asked;
      turned.x = first(x);
      turned.y = first(y);
      turned.z = first(z);
      turned.tokens_first = true;
      exact.x = x.to(at::kDouble);
      exact.y = y.to(at::kDouble);
      exact.z = z.to(at::kDouble);
      exact.modulation = modulation.to(at::kDouble);
      exact.plain = true;
      const at::Tensor expected = tstitch::detail::residual_norm_modulate(exact);
      const at::Tensor got = tstitch::detail::residual_norm_modulate(asked);
      const double unit = type == at::kFloat ? 1e-6 : 8e-3;
      CHECK(rms(got, expected) < 2 * unit);
      CHECK(rms(asked.x, exact.x) < unit);
      CHECK(first(got).equal(tstitch::detail::residual_norm_modulate(turned)));
      CHECK(first(asked.x).equal(turned.x));
    }
  }
}

TEST_CASE("the kernel of queries' and keys' norm computes what torch's operations compute") {
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (auto const& [heads, head] :
         {std::pair<std::int64_t, std::int64_t>{3, 8}, {2, 64}, {38, 64}, {1, 256}, {2, 24}}) {
      const at::Tensor qkv = normal(31, {3, heads, head}).mul(3).to(type), weights = normal(2, {2, head}, 40).to(type);
      CHECK(bool(tstitch::detail::qk_norm_kernel(qkv)) == (head != 24));
      const at::Tensor mine = qkv.clone(), plain = qkv.to(at::kFloat);
      tstitch::detail::qk_norm(mine, weights, 20);
      tstitch::detail::qk_norm(plain, weights.to(at::kFloat), 20, true);
      INFO(at::toString(type) << " " << heads << " heads of " << head);
      CHECK(rms(mine, plain) < (type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 8e-3));
      CHECK(mine.select(1, 2).equal(qkv.select(1, 2)));
    }
  }
}

namespace {

/// [n, tokens, 3, heads, head width] of which the softmax is of scores of up to some hundreds, and far from 0 on the
/// average.
at::Tensor queries_keys_values(std::int64_t n, std::int64_t tokens, std::int64_t heads, std::int64_t head) {
  return normal(n, {tokens, 3, heads, head}).mul(3).add(1);
}

at::Tensor attention_of_torch(at::Tensor const& qkv) {
  const at::Tensor parts = qkv.permute({2, 0, 3, 1, 4});
  return at::scaled_dot_product_attention(parts[0], parts[1], parts[2]).transpose(1, 2);
}

/// In the type of qkv and in 8 bits.
void check_attention(at::Tensor const& qkv, tstitch::detail::AttentionBy by) {
  const at::Tensor exact = attention_of_torch(qkv.to(at::kDouble));
  const double of_torch = rms(attention_of_torch(qkv), exact);
  INFO(at::toString(qkv.scalar_type()) << ", " << qkv.sizes() << "; torch is " << of_torch << " off");
  const at::Tensor got = tstitch::detail::attention_kernel(qkv, 0, by);
  REQUIRE(got.defined());
  REQUIRE(got.scalar_type() == qkv.scalar_type());
  REQUIRE(rms(got, exact) <= 1.1 * of_torch);
  if (tstitch::detail::compute_capability(0) < 89) return skip("8 bits need a GPU of compute capability 8.9");
  const double factor = 448 / exact.abs().max().item<double>() / 2;
  const at::Tensor rounded = tstitch::detail::attention_kernel(qkv, factor, by);
  REQUIRE(rounded.defined());
  REQUIRE(rounded.scalar_type() == at::kFloat8_e4m3fn);
  const double of_rounding =
      rms(exact.mul(factor).to(at::kFloat).to(at::kFloat8_e4m3fn).to(at::kDouble), exact.mul(factor));
  REQUIRE(rms(rounded.to(at::kDouble), exact.mul(factor)) <= 1.02 * of_rounding);
  // What does not fit becomes the largest number.
  REQUIRE(tstitch::detail::attention_kernel(qkv, 1e6, by).to(at::kFloat).abs().max().item<double>() == 448);
}

}  // namespace

TEST_CASE("the attention kernel for few rows computes what torch computes") {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const std::int64_t head : {8, 16, 64, 72, 128}) {
      // Of fewer queries than a warp has, of whole and of broken blocks, of one and of many turns of the ring.
      for (const std::int64_t tokens : {1, 17, 64, 100, 128, 256, 700}) {
        check_attention(queries_keys_values(2, tokens, 3, head).to(type), tstitch::detail::AttentionBy::few_rows);
      }
    }
  }
}

TEST_CASE("the attention kernel for many rows computes what torch computes") {
  if (tstitch::detail::compute_capability(0) != 90) return skip("this needs a GPU of compute capability 9.0");
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const std::int64_t head : {64, 72}) {
      // Of broken chunks, of groups of warps without queries; fewer heads than multiprocessors, and many for each.
      for (const std::int64_t tokens : {1, 17, 64, 100, 192, 256}) {
        for (const std::int64_t n : {2, 45, 300}) {
          check_attention(queries_keys_values(n, tokens, 3, head).to(type), tstitch::detail::AttentionBy::many_rows);
        }
      }
    }
  }
}

TEST_CASE("the attention kernel for many keys computes what torch computes") {
  if (tstitch::detail::compute_capability(0) != 90) return skip("the kernel needs a GPU of compute capability 9.0");
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (auto const& [tokens, n, heads, asking] : {std::array<std::int64_t, 4>{512, 2, 3, 512},
                                                   {577, 1, 2, 577},
                                                   {1030, 3, 5, 700},
                                                   {1024, 2, 1, 1},
                                                   {4429, 2, 3, 4096}}) {
      const at::Tensor qkv = normal(tokens, {n, 3, heads, 64}).mul(3).add(1).to(type);
      const auto by_torch = [&](at::Tensor const& of) {
        const at::Tensor parts = of.permute({2, 1, 3, 0, 4});
        return at::scaled_dot_product_attention(parts[0].narrow(2, 0, asking), parts[1], parts[2])
            .permute({2, 0, 1, 3});
      };
      const at::Tensor exact = by_torch(qkv.to(at::kDouble));
      INFO(at::toString(type) << ", " << qkv.sizes() << ", " << asking);
      const at::Tensor got = tstitch::detail::attention_of_tokens(qkv, asking);
      REQUIRE(got.defined());
      CHECK(rms(got, exact) <= 1.1 * rms(by_torch(qkv), exact));
      const double first = 448 / exact.abs().max().item<double>() / 2, others = first / 3;
      const std::int64_t of_first = asking / 2;
      const at::Tensor rounded =
          tstitch::detail::attention_of_tokens(qkv, asking, tstitch::detail::TokenFactors{of_first, first, others});
      const at::Tensor expected = exact.clone();
      expected.narrow(0, 0, of_first).mul_(first);
      expected.narrow(0, of_first, asking - of_first).mul_(others);
      const double of_rounding = rms(expected.to(at::kFloat).to(at::kFloat8_e4m3fn).to(at::kDouble), expected);
      CHECK(rms(rounded.to(at::kDouble), expected) <= 1.05 * of_rounding);
      CHECK(tstitch::detail::attention_of_tokens(qkv, asking).equal(got));
    }
  }
  CHECK_FALSE(tstitch::detail::attention_of_tokens(normal(600, {1, 3, 2, 72}).to(at::kHalf), 600).defined());
  CHECK_FALSE(tstitch::detail::attention_of_tokens(normal(600, {1, 3, 2, 64}), 600).defined());
}

TEST_CASE("the attention kernels are used where they are the faster way") {
  const bool hopper = tstitch::detail::compute_capability(0) == 90;
  const auto used = [](at::Tensor const& qkv) { return tstitch::detail::attention_kernel(qkv).defined(); };
  const at::Tensor one = queries_keys_values(1, 256, 4, 64).to(at::kHalf);
  CHECK(used(one));
  CHECK(used(one.repeat({500, 1, 1, 1, 1})) == hopper);
  CHECK_FALSE(used(one.repeat({1, 2, 1, 1, 1})));
  CHECK_FALSE(used(queries_keys_values(500, 256, 4, 32).to(at::kHalf)));
  CHECK_FALSE(used(one.to(at::kFloat)));
  CHECK_FALSE(used(one.narrow(4, 0, 56)));
  CHECK_FALSE(used(one.flatten().narrow(0, 4, 3 * 256 * 64).view({1, 256, 3, 1, 64})));  // 8 bytes off
}

TEST_CASE("the DiT engine computes what the TorchScript network computes") {
  for (std::string const& file : {small_file, large_file}) {
    const at::Tensor x = normal(6, {3, 32, 32});
    const Condition condition = labelled({0, 3, 9, 10, 10, 10});
    const TorchScriptOptions exact{.device = cuda, .dtype = at::kFloat};
    const at::Tensor expected = load_torchscript(file, exact)(x, times(400, 6), condition);
    CHECK(rms(load_dit(file, exact)(x, times(400, 6), condition, 400.0), expected) < 1e-5);
    for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
      const TorchScriptOptions rounded{.device = cuda, .dtype = type};
      const double of_oracle = rms(load_torchscript(file, rounded)(x, times(400, 6), condition), expected);
      const double of_engine = rms(load_dit(file, rounded)(x, times(400, 6), condition, 400.0), expected);
      std::printf("%s: TorchScript is %.1e from float32, the engine %.1e\n", at::toString(type), of_oracle, of_engine);
      CHECK(of_engine < 1.5 * of_oracle);
    }
  }
}

TEST_CASE("modulations are waited for, whichever stream writes and reads them") {
  const TorchScriptOptions options{.device = cuda, .dtype = at::kFloat};
  const Network engine = load_dit(small_file, options), oracle = load_dit(small_file, options);
  const at::Tensor x = normal(2, {3, 32, 32}), t = times(500, 2);
  const std::vector<c10::cuda::CUDAStream> streams{c10::cuda::getStreamFromPool(), c10::cuda::getStreamFromPool(),
                                                   c10::cuda::getStreamFromPool()};
  const auto ask = [&](Network const& network, Condition const& condition) { return network(x, t, condition, 500.0); };
  const Condition known = labelled({3, 10}), turned = labelled({10, 3});
  const at::Tensor expected = ask(oracle, known), expected_turned = ask(oracle, turned);
  const at::Tensor large = normal(4096, {4096});
  const auto keep_busy = [&] {  // tens of milliseconds
    for (int i = 0; i < 20; ++i) large.mm(large);
  };
  at::Tensor got, got_turned, got_again;
  for (c10::cuda::CUDAStream const& stream : streams) {  // whatever is made at a first use is there
    const c10::cuda::CUDAStreamGuard guard(stream);
    ask(oracle, known);
    large.mm(large);
  }
  c10::cuda::device_synchronize();
  {
    const c10::cuda::CUDAStreamGuard guard(streams[0]);
    keep_busy();
    engine.prepare(std::vector{999.0, 500.0}, known);
  }
  {
    const c10::cuda::CUDAStreamGuard guard(streams[1]);  // the table grows by a copy of what is not written yet
    engine.prepare(std::vector{999.0, 500.0, 300.0}, labelled({1, 7, 10}));
  }
  {
    const c10::cuda::CUDAStreamGuard guard(streams[2]);
    got = ask(engine, known);
    keep_busy();
    got_turned = ask(engine, turned);  // by a list of rows, which comes to the GPU behind all that
  }
  {
    const c10::cuda::CUDAStreamGuard guard(streams[1]);
    got_again = ask(engine, turned);
  }
  c10::cuda::device_synchronize();
  // Modulations have other last bits in a product of more rows.
  CHECK(rms(got, expected) < 1e-5);
  CHECK(rms(got_turned, expected_turned) < 1e-5);
  CHECK(rms(got_again, expected_turned) < 1e-5);
}

namespace {

/// Of two blocks with two heads of 72 channels, for pictures of 256 tokens.
DiTWeights wide_heads(at::ScalarType type) {
  constexpr std::int64_t width = 144, depth = 2, classes = 10, channels = 4, patch = 2;
  std::uint64_t seed = 0;
  const auto random = [&](std::int64_t out, std::int64_t in, double deviation) {
    return normal(out, {in}, seed += 10000).mul(deviation).to(type);
  };
  const auto linear = [&](std::int64_t out, std::int64_t in) {
    return DiTLinear{random(out, in, 1 / std::sqrt(double(in))), random(1, out, 0.1).flatten()};
  };
  DiTWeights made{.x_embedder = linear(width, channels * patch * patch),
                  .t_embedder0 = linear(width, 256),
                  .t_embedder2 = linear(width, width),
                  .y_embedder = random(classes + 1, width, 1),
                  .pos_embed = random(256, width, 1).unsqueeze(0),
                  .modulation = linear((6 * depth + 2) * width, width),
                  .blocks = {},
                  .final_layer = linear(patch * patch * channels, width),
                  .heads = 2,
                  .patch = patch};
  for (std::int64_t b = 0; b < depth; ++b) {
    made.blocks.push_back(
        {linear(3 * width, width), linear(width, width), linear(4 * width, width), linear(width, 4 * width)});
  }
  return made;
}

}  // namespace

TEST_CASE("the DiT engine attends by its own kernels as by torch's") {
  const NetworkInfo info{
      .name = "wide heads", .channels = 4, .height = 32, .width = 32, .num_classes = 10, .null_class = 10};
  for (const std::int64_t n : {2, 200}) {  // few rows and many
    const at::Tensor x = normal(n, {4, 32, 32});
    const Condition condition = labelled(std::vector<std::int64_t>(std::size_t(n), 3));
    const auto run = [&](auto const& network) { return network(x, times(400, n), condition, 400.0); };
    const at::Tensor exact = run(DiT(wide_heads(at::kFloat), {.plain = true}));
    for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
      for (const bool eighth : {false, true}) {
        if (eighth && tstitch::detail::compute_capability(0) < 89) continue;
        const auto made = [&](bool plain) {
          const std::vector<double> inputs(eighth ? 8 : 0, 20.0);
          return DiT(wide_heads(type), {.plain = plain, .e4m3_inputs = inputs});
        };
        const double of_torch = rms(run(made(true)), exact);
        const Network engine(made(false), info, cuda);
        const at::Tensor got = run(engine);
        INFO(n << " rows, " << at::toString(type) << (eighth ? ", 8 bits" : "") << "; torch's is " << of_torch
               << " off");
        CHECK(rms(got, exact) < 1.2 * of_torch);
        CHECK(rms(got, exact) > 0.1 * of_torch);
        std::vector<std::string> reasons;
        const Network graph =
            captured(engine, {.on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
        CHECK(run(graph).equal(got));
        CHECK(reasons.empty());
      }
    }
  }
}

TEST_CASE("graphs give the bits of plain calls, in any order of shapes, and memory stays flat") {
  const TorchScriptOptions options{.device = cuda, .dtype = at::kHalf};
  for (Network const& plain : {load_torchscript(small_file, options), load_dit(small_file, options)}) {
    std::vector<std::string> reasons;
    const Network graphs =
        captured(plain, {.graphs = 3, .on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
    std::int64_t settled = 0;
    for (int round = 0; round < 40; ++round) {
      const std::int64_t n = 1 + (round * 7) % 5;
      const at::Tensor x = normal(n, {3, 32, 32}, std::uint64_t(round));
      const std::vector<std::int64_t> labels(std::size_t(n), round % 11);
      const double t = 100 + round;
      const at::Tensor got = graphs(x, times(std::int64_t(t), n), labelled(labels), t);
      const at::Tensor kept = got.clone();
      REQUIRE(got.equal(plain(x, times(std::int64_t(t), n), labelled(labels), t)));
      graphs(x.add(1), times(std::int64_t(t), n), labelled(labels), t);
      REQUIRE(got.equal(kept));  // a later call leaves it alone
      if (round == 20) settled = allocated();
    }
    CHECK(reasons.empty());
    CHECK(allocated() <= settled + (std::int64_t(4) << 20));
  }
}

TEST_CASE("one graph at a time, failed captures and gradients leave the others as they are") {
  std::vector<std::string> reasons;
  const auto tell = [&](std::string const& reason) { reasons.push_back(reason); };
  const TorchScriptOptions options{.device = cuda, .dtype = at::kHalf};
  const Network plain = load_dit(small_file, options);
  const Network one = captured(plain, {.graphs = 1, .on_fallback = tell});
  for (int round = 0; round < 6; ++round) {
    const std::int64_t n = 1 + round % 3;
    const Condition condition = labelled(std::vector<std::int64_t>(std::size_t(n), 3));
    const at::Tensor x = normal(n, {3, 32, 32}, std::uint64_t(round));
    REQUIRE(one(x, {}, condition, 400.0).equal(plain(x, {}, condition, 400.0)));
  }
  CHECK(reasons.empty());

  // Waits for the GPU, which cannot be captured, where there is one row.
  const Network waits(
      [](at::Tensor const& x, at::Tensor const& t) {
        return x.mul(x.size(0) == 1 ? double(t.select(0, 0).item<std::int64_t>()) : 3.0);
      },
      {}, cuda);
  const Network some = captured(waits, {.graphs = 2, .on_fallback = tell});
  for (const std::int64_t n : {1, 2, 1, 4, 5, 1, 2}) {
    const at::Tensor x = normal(n, {3, 8, 8});
    REQUIRE(some(x, times(3, n), {}).equal(x.mul(3)));
  }
  CHECK(reasons.size() == 2);  // the one row was forgotten in between
  c10::cuda::CUDACachingAllocator::emptyCache();

  // What is to have gradients has them.
  const Network graph = captured(waits);
  const at::Tensor x = normal(2, {3, 8, 8});
  graph(x, times(3, 2), {});
  const c10::AutoGradMode gradients(true);
  const at::Tensor leaf = x.clone().requires_grad_(true);
  graph(leaf, times(3, 2), {}).sum().backward();
  CHECK(leaf.grad().eq(3).all().item<bool>());
}

TEST_CASE("a thousand shapes in turn leave memory as it was") {
  const Network network = captured(load_dit(small_file, {.device = cuda, .dtype = at::kHalf}), {.graphs = 4});
  const auto reserved = [] { return c10::cuda::CUDACachingAllocator::getDeviceStats(0).reserved_bytes[0].current; };
  const auto run = [&](std::int64_t n) {
    network(normal(n, {3, 32, 32}), times(500, n), labelled(std::vector<std::int64_t>(std::size_t(n), 1)), 500.0);
  };
  std::vector<std::int64_t> in_use, taken;
  for (int shape = 0; shape < 1000; ++shape) {
    if (shape % 250 == 0) {  // after the largest shapes of all
      for (const std::int64_t n : {250, 249, 248, 247}) run(n);
      in_use.push_back(allocated());
      taken.push_back(reserved());
    }
    run(1 + shape * 97 % 250);
  }
  for (std::size_t i = 0; i < in_use.size(); ++i) {
    std::printf("after %zu shapes: %.1f MB in use, %.1f MB taken\n", 250 * i, double(in_use[i]) / 1e6,
                double(taken[i]) / 1e6);
  }
  CHECK(in_use.back() <= in_use[1] + (std::int64_t(4) << 20));
  CHECK(taken.back() <= taken[1] + (std::int64_t(64) << 20));
}

TEST_CASE("what cannot be captured is called plainly, and the process stays healthy") {
  const Network waits(
      [](at::Tensor const& x, at::Tensor const& t) {
        return x.mul(double(t.select(0, 0).item<std::int64_t>()));  // asks the GPU for a value
      },
      {}, cuda);
  std::vector<std::string> reasons;
  const Network network =
      captured(waits, {.on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
  const at::Tensor x = normal(2, {3, 8, 8});
  for (int call = 0; call < 3; ++call) CHECK(network(x, times(3, 2), {}).equal(x.mul(3)));
  REQUIRE(reasons.size() == 1);
  std::printf("not captured: %s\n", reasons[0].c_str());
  // Random numbers and other captures still work.
  CHECK(at::Tensor(x.clone()).normal_().isfinite().all().item<bool>());
  const Network other = captured(Network([](at::Tensor const& y, at::Tensor const&) { return y.add(1); }, {}, cuda),
                                 {.on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
  CHECK(other(x, times(3, 2), {}).equal(x.add(1)));
  CHECK(reasons.size() == 1);
  // Who is told may ask the very network.
  std::optional<Network> asked;
  at::Tensor answer;
  asked = captured(waits, {.on_fallback = [&](std::string const&) { answer = (*asked)(x, times(3, 2), {}); }});
  CHECK((*asked)(x, times(3, 2), {}).equal(x.mul(3)));
  REQUIRE(answer.defined());
  CHECK(answer.equal(x.mul(3)));
  const std::vector<std::string> said = diagnostics();
  CHECK(std::find(said.begin(), said.end(),
                  "tstitch::cuda_graphs: calls plainly what cannot be captured: " + reasons[0]) != said.end());
}

TEST_CASE("a stitched run of captured engines never waits, and is that of plain ones") {
  const TorchScriptOptions options{.device = cuda, .dtype = at::kHalf};
  const std::vector<Network> plain{load_dit(small_file, options), load_dit(large_file, options)};
  const std::vector<Network> graphs{captured(plain[0]), captured(plain[1])};
  const Request request{.labels = {1, 2, 3, 4}, .seed = 9, .guidance = {.scale = 1.5, .begin = 0.1}};
  const DDIM sampler{plain[0].noise_schedule(), Stitch{0.4}, {.steps = 10}};
  const at::Tensor expected = sampler.sample(plain, request).images;
  CHECK(sampler.sample(graphs, request).images.equal(expected));
  Trajectory trajectory = sampler.begin(graphs, request);
  {
    const NoWaiting no_waiting;
    trajectory = sampler.begin(graphs, request);
    while (!trajectory.finished()) sampler.advance(graphs, trajectory);
  }
  CHECK(trajectory.x.equal(expected));
}

TEST_CASE("forecasts by captured engines never wait, and are those of plain ones and near the CPU's") {
  const Forecast every = ForecastEvery{.every = 2, .warm_up = 2, .first_network = 1};
  Request request{.labels = {1, 2, 3, 4}, .seed = 9};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const TorchScriptOptions options{.device = cuda, .dtype = type};
    const std::vector<Network> plain{load_dit(small_file, options), load_dit(large_file, options)};
    const std::vector<Network> graphs{captured(plain[0]), captured(plain[1])};
    const std::vector<Network> host{load_dit(small_file), load_dit(large_file)};
    for (const bool half : {false, true}) {
      request.guidance = {.scale = 1.5, .begin = 0.1};
      if (half) request.guidance.forecast = ForecastEvery{.every = 2, .warm_up = 2};
      const DDIM sampler{plain[0].noise_schedule(), Stitch{0.4}, {.steps = 20, .forecast = every}};
      const at::Tensor expected = sampler.sample(plain, request).images;
      CHECK(sampler.sample(graphs, request).images.equal(expected));
      // Float32 pictures, whose products are rounded in another order there.
      if (type == at::kFloat) CHECK(rms(expected.cpu(), sampler.sample(host, request).images) < 1e-3);
      Trajectory trajectory = sampler.begin(graphs, request);
      {
        const NoWaiting no_waiting;
        trajectory = sampler.begin(graphs, request);
        while (!trajectory.finished()) sampler.advance(graphs, trajectory);
      }
      CHECK(trajectory.x.equal(expected));
      const DDIM unforecast{plain[0].noise_schedule(), Stitch{0.4}, {.steps = 20}};
      const double change = rms(expected, unforecast.sample(plain, request).images);
      std::printf("forecasts%s: changed by %.2g of the rms\n", half ? ", guidance too" : "", change);
      CHECK(change < 0.1);
      trajectory = {};
      sampler.sample(graphs, request);
      const std::int64_t before = allocated();
      for (int i = 0; i < 5; ++i) sampler.sample(graphs, request);
      CHECK(allocated() == before);
    }
  }
}

TEST_CASE("8 bits are rounded as torch rounds them") {
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const at::Tensor x = normal(3, {7, 384}).mul(20).to(type);
    const at::Tensor modulation = normal(3, {9, 384}, 20).to(type);
    for (const bool gelu : {false, true}) {
      const at::Tensor got = tstitch::detail::to_e4m3(x, 0.1, gelu, tstitch::detail::dit_kernels(x));
      const at::Tensor expected = tstitch::detail::to_e4m3(x, 0.1, gelu);
      REQUIRE(got.scalar_type() == at::kFloat8_e4m3fn);
      if (!gelu) {
        CHECK(got.to(at::kFloat).equal(expected.to(at::kFloat)));
      } else {  // whose tangent is approximate: now and then a neighbour
        CHECK(rms(got.to(at::kFloat), expected.to(at::kFloat)) < 1e-2);
      }
    }
    const at::Tensor got =
        tstitch::detail::residual_norm_modulate(
            {.x = x.clone(), .modulation = modulation, .shift = 5, .scale = 7, .eps = 1e-6, .e4m3_scale = 0.02})
            .to(at::kFloat);
    const at::Tensor expected = tstitch::detail::residual_norm_modulate({.x = x.clone(),
                                                                         .modulation = modulation,
                                                                         .shift = 5,
                                                                         .scale = 7,
                                                                         .eps = 1e-6,
                                                                         .plain = true,
                                                                         .e4m3_scale = 0.02})
                                    .to(at::kFloat);
    CHECK(rms(got, expected) < 2e-2);  // torch's way rounds to the type in between
  }
}

TEST_CASE("a product in 8 bits with GELU in its epilogue is that of separate steps") {
  const at::Device device = cuda;
  if (tstitch::detail::compute_capability(0) < 89) return skip("8 bits need a GPU of compute capability 8.9");
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const std::int64_t rows : {16, 512, 4096}) {
      const at::Tensor x = tstitch::detail::to_e4m3(normal(1, {rows, 384}).select(0, 0), 0.02);
      const at::Tensor weight = tstitch::detail::to_e4m3(normal(1, {1536, 384}, 1).select(0, 0).mul(0.1), 0.001);
      const at::Tensor bias = normal(1, {1536}, 2).select(0, 0).to(type);
      const at::Tensor scales = at::full({3, 4}, 0.0, at::TensorOptions(device).dtype(at::kFloat));
      scales.select(0, 0).fill_(0.02);
      scales.select(0, 1).fill_(0.001);
      scales.select(0, 2).fill_(1 / 0.03);
      const auto scale = [&](int k) { return scales.select(0, k).narrow(0, 0, 1); };
      const at::Tensor got = x.new_empty({rows, 1536});
      REQUIRE(tstitch::detail::product_e4m3({x, weight, bias, scale(0), scale(1), scale(2)}, got));
      const at::Tensor exact =
          at::linear(x.to(at::kDouble).mul(0.02), weight.to(at::kDouble).mul(0.001), bias.to(at::kDouble));
      const at::Tensor expected = tstitch::detail::to_e4m3(exact, 0.03, true);
      // The same but for neighbours, where fast accumulation or the approximate tangent moves a value over a boundary.
      CHECK(rms(got.to(at::kFloat), expected.to(at::kFloat)) < 1e-2);
      const double off = got.to(at::kFloat).ne(expected.to(at::kFloat)).to(at::kDouble).mean().item<double>();
      std::printf("GELU in 8 bits, %d rows: %.2f %% are neighbours\n", int(rows), 100 * off);
      CHECK(off < 0.05);
    }
  }
  // In float32 cuBLASLt has none.
  const at::Tensor x = tstitch::detail::to_e4m3(normal(1, {16, 64}).select(0, 0), 0.02);
  const at::Tensor one = at::full({4}, 1.0, at::TensorOptions(device).dtype(at::kFloat)).narrow(0, 0, 1);
  CHECK_FALSE(
      tstitch::detail::product_e4m3({x, x, at::full({16}, 0.0, one.options()), one, one, one}, x.new_empty({16, 16})));
}

TEST_CASE("a product in 8 bits is torch's, whichever algorithm is the fastest") {
  if (tstitch::detail::compute_capability(0) < 89) return skip("8 bits need a GPU of compute capability 8.9");
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (auto const& [rows, in, out] : {std::array<std::int64_t, 3>{16, 384, 1152},
                                        {48, 1152, 1152},
                                        {666, 1536, 4608},
                                        {4096, 2432, 2432},
                                        {8192, 1536, 1536}}) {
      const at::Tensor x = tstitch::detail::to_e4m3(normal(1, {rows, in}).select(0, 0), 0.02);
      const at::Tensor weight = tstitch::detail::to_e4m3(normal(1, {out, in}, 1).select(0, 0).mul(0.1), 0.001);
      const at::Tensor bias = normal(1, {out}, 2).select(0, 0).to(type);
      const auto scale = [](double value) { return at::full({1}, value, at::TensorOptions(cuda).dtype(at::kFloat)); };
      const at::Tensor of_x = scale(0.02), of_weight = scale(0.001), got = bias.new_empty({rows, out});
      INFO(at::toString(type) << ", " << rows << ", " << in << ", " << out);
      REQUIRE(tstitch::detail::product_e4m3({x, weight, bias, of_x, of_weight}, got));
      CHECK(got.equal(at::_scaled_mm(x, weight.t(), of_x, of_weight, bias, {}, type, /*use_fast_accum=*/true)));
      const at::Tensor again = at::empty_like(got);
      REQUIRE(tstitch::detail::product_e4m3({x, weight, bias, of_x, of_weight}, again));
      CHECK(again.equal(got));
    }
  }
}

TEST_CASE("8 bits cost the DiT engine little") {
  const TorchScriptOptions half{.device = cuda, .dtype = at::kBFloat16};
  for (std::string const& file : {small_file, large_file}) {
    const std::vector<double> largest = largest_inputs(file, half);
    const Network eighth = load_dit(file, half, {.e4m3_inputs = largest});
    const at::Tensor x = normal(6, {3, 32, 32});
    const Condition condition = labelled({0, 3, 9, 10, 10, 10});
    const at::Tensor exact = load_torchscript(file, {.device = cuda, .dtype = at::kFloat})(x, times(400, 6), condition);
    const double off = rms(eighth(x, times(400, 6), condition, 400.0), exact);
    std::printf("in 8 bits %.1e from float32, bfloat16 %.1e\n", off,
                rms(load_dit(file, half)(x, times(400, 6), condition, 400.0), exact));
    CHECK(off < 4e-2);
    std::vector<std::string> reasons;
    const Network graph =
        captured(eighth, {.on_fallback = [&](std::string const& reason) { reasons.push_back(reason); }});
    CHECK(graph(x, times(400, 6), condition, 400.0).equal(eighth(x, times(400, 6), condition, 400.0)));
    CHECK(reasons.empty());
  }
}
