#include <tstitch/method/ddim.hpp>
#include <tstitch/peer/torch_noise.hpp>
#include <tstitch/tensor/noise.hpp>

#include <algorithm>
#include <set>

#include "../catch.hpp"

using namespace tstitch;

namespace {
const at::TensorOptions float32 = at::TensorOptions().dtype(at::kFloat);
const at::TensorOptions float64 = at::TensorOptions().dtype(at::kDouble);

std::array<std::uint32_t, 4> philox(tstitch::detail::PhiloxCounter const& counter, tstitch::detail::PhiloxKey key) {
  return tstitch::detail::philox(counter, tstitch::detail::philox_keys(key));
}
}  // namespace

TEST_CASE("Philox 4x32-10 gives its published test vectors") {
  // kat_vectors of the Random123 library, philox 4x32 10.
  using Words = std::array<std::uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("the noise of a seed is the same bits in any batch and at any position") {
  const at::Tensor alone = noise({7}, NoiseAddress::of_step(3), {3, 8, 8}, float32);
  for (std::size_t batch : {3, 64}) {
    for (std::size_t position = 0; position < batch; ++position) {
      std::vector<std::uint64_t> seeds;
      for (std::size_t i = 0; i < batch; ++i) seeds.push_back(1000 + i);
      seeds[position] = 7;
      const at::Tensor many = noise(seeds, NoiseAddress::of_step(3), {3, 8, 8}, float32);
      REQUIRE(many.select(0, std::int64_t(position)).equal(alone.select(0, 0)));
    }
  }
}

TEST_CASE("float32 noise is that of float64 but for rounding") {
  // The words of the generator at which the transform changes its branch, and its ends.
  std::vector<std::uint32_t> words{0, 1, 2, 255, 256, ~0u, ~0u - 1, ~0u - 255, 0x7FFFFFFF, 0x80000000};
  for (std::uint32_t eighth = 0; eighth < 8; ++eighth) {
    for (std::uint32_t off : {0u, 1u, ~0u}) words.push_back((eighth << 29) + off);
  }
  for (int off = -3; off <= 3; ++off) words.push_back(0xB504F334 + std::uint32_t(off));
  for (int i = 0; i < 300; ++i) words.push_back(philox({std::uint32_t(i), 0, 0, 0}, {0, 0})[0]);
  double worst = 0;
  for (const std::uint32_t a : words) {
    for (const std::uint32_t b : words) {
      const auto exact = tstitch::detail::box_muller(a, b);
      const tstitch::detail::PolarNormal polar = tstitch::detail::polar_normal(a, b);
      const float radius = std::sqrt(polar.radius_squared);
      worst = std::max({worst, std::abs(radius * polar.cosine - exact[0]), std::abs(radius * polar.sine - exact[1])});
    }
  }
  CHECK(worst < 1e-6);

  // Every length: whole blocks of the vector code and what is left over.
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{7}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    for (std::int64_t count : {1, 3, 4, 63, 64, 65, 1000}) {
      const NoiseAddress address = NoiseAddress::of_step(999, 2);
      const at::Tensor in_double = noise({seed, seed + 1}, address, {1, 1, count}, float64);
      const at::Tensor in_float = noise({seed, seed + 1}, address, {1, 1, count}, float32);
      CHECK(in_double.sub(in_float).abs().max().item<double>() < 1e-6);
    }
  }
}

TEST_CASE("vector code draws what plain code does") {
  for (std::uint32_t step : {0u, 1u, 12345u}) {
    std::vector<float> plain(777), dispatched(777);
    tstitch::detail::fill_blocks<tstitch::detail::philox_block>(plain.data(), 777, {0, 0, step, 3},
                                                                tstitch::detail::philox_keys({17, 0x9E3779B9}));
    tstitch::detail::fill_normals(dispatched.data(), 777, {0, 0, step, 3},
                                  tstitch::detail::philox_keys({17, 0x9E3779B9}));
    CHECK(plain == dispatched);
  }
}

TEST_CASE("different addresses give different noise") {
  std::set<double> first;
  for (std::uint64_t seed : {0, 1, 2}) {
    for (NoiseAddress address : {NoiseAddress::initial(), NoiseAddress::of_step(0), NoiseAddress::of_step(1),
                                 NoiseAddress::of_step(0, 1), NoiseAddress::of_step(1, 1)}) {
      first.insert(noise({seed}, address, {1, 1, 1}, float64).item<double>());
    }
  }
  CHECK(first.size() == 15);
  // Seeds differ in their high words too.
  CHECK_FALSE(noise({1}, NoiseAddress::initial(), {1, 2, 2}, float32)
                  .equal(noise({1 + (std::uint64_t{1} << 32)}, NoiseAddress::initial(), {1, 2, 2}, float32)));
}

TEST_CASE("an image's noise does not depend on how much of it is asked for") {
  const at::Tensor large = noise({5}, NoiseAddress::initial(), {1, 1, 23}, float64);
  const at::Tensor small = noise({5}, NoiseAddress::initial(), {1, 1, 10}, float64);
  CHECK(large.narrow(3, 0, 10).equal(small));
}

TEST_CASE("the noise is standard normal") {
  std::vector<std::uint64_t> seeds(64);
  for (std::size_t i = 0; i < seeds.size(); ++i) seeds[i] = i;
  const at::Tensor z = noise(seeds, NoiseAddress::of_step(0), {4, 64, 64}, float64);  // 2^20 numbers
  const double n = double(z.numel());
  // Four standard errors each: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
  CHECK(std::abs(z.mean().item<double>()) < 4 * std::sqrt(1 / n));
  CHECK(std::abs(z.pow(2).mean().item<double>() - 1) < 4 * std::sqrt(2 / n));
  CHECK(std::abs(z.pow(3).mean().item<double>()) < 4 * std::sqrt(15 / n));
  CHECK(std::abs(z.pow(4).mean().item<double>() - 3) < 4 * std::sqrt(96 / n));
  // Neighbours, which share a Philox block, are independent: so are their squares.
  const at::Tensor pairs = z.view({-1, 2});
  const at::Tensor a = pairs.select(1, 0), b = pairs.select(1, 1);
  CHECK(std::abs(a.mul(b).mean().item<double>()) < 4 * std::sqrt(2 / n));
  CHECK(std::abs(a.pow(2).sub(1).mul(b.pow(2).sub(1)).mean().item<double>()) < 4 * std::sqrt(8 / n));
}

TEST_CASE("TorchNoise is for one batch, whose noise another one would have") {
  const Network zero([](at::Tensor const& x, at::Tensor const&) { return x.mul(0); },
                     {.channels = 1, .height = 2, .width = 2, .noise_schedule = NoiseSchedule::linear()});
  const DDIM sampler{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 2}};
  Request request{.count = 4, .noise_source = TorchNoise(7)};
  const at::Tensor together = sampler.sample({zero}, request).images;
  CHECK(sampler.sample({zero}, request).images.equal(together));  // the same batch again
  request.batch_size = 2;
  CHECK(message_of<std::invalid_argument>([&] { sampler.sample({zero}, request); }) ==
        "tstitch::TorchNoise: is for one batch, which had 4 images from seed 0 on; each needs its own, got 2 images "
        "from seed 0 on");
  request.noise_source = TorchNoise(7);
  CHECK(message_of<std::invalid_argument>([&] { sampler.sample({zero}, request); }) ==
        "tstitch::TorchNoise: is for one batch, which had 2 images from seed 0 on; each needs its own, got 2 images "
        "from seed 2 on");
}

TEST_CASE("TorchNoise draws what a program draws, one step after another, and begins anew for an earlier one") {
  // torch.manual_seed(7), then torch.randn in the order of the program: a row of three for x, then two a step.
  at::Generator generator = at::detail::createCPUGenerator(7);
  std::vector<at::Tensor> drawn;
  for (const std::int64_t rows : {1, 2, 2, 2}) {
    drawn.push_back(tstitch::detail::host_tensor({rows, 1, 1, 3}, at::kFloat).normal_(0, 1, generator));
  }
  const TorchNoise source(7, {.rows_per_image = 2});
  const auto of = [&](NoiseAddress address) { return source({0}, address, {1, 1, 3}, float32); };
  CHECK(of(NoiseAddress::initial()).equal(drawn[0]));
  CHECK(of(NoiseAddress::of_step(2)).equal(drawn[3].narrow(0, 0, 1)));
  CHECK(of(NoiseAddress::of_step(0)).equal(drawn[1].narrow(0, 0, 1)));
  CHECK(message_of<std::invalid_argument>([&] { of(NoiseAddress::of_step(1, 1)); }) ==
        "tstitch::TorchNoise: has one draw a step, got 1");
  const TorchNoise of_steps(7, {.initial_first = false});
  CHECK(message_of<std::invalid_argument>([&] {
          of_steps({0}, NoiseAddress::initial(), {1, 1, 3}, float32);
        }) == "tstitch::TorchNoise: draws no initial noise with initial_first off, got 0");
}
