#include <ATen/Parallel.h>
#include <tstitch/file/dit.hpp>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../same_bits.hpp"

using namespace tstitch;

namespace {

/// Shapes of a DiT, of which images are square.
struct Shape {
  std::int64_t width, heads, depth, tokens_each_way, patch;
};

std::int64_t next_seed = 0;

/// Normal numbers times a factor.
at::Tensor numbers(std::vector<std::int64_t> const& shape, double factor) {
  return noise({std::uint64_t(next_seed++)}, NoiseAddress::initial(), shape, at::TensorOptions().dtype(at::kFloat))
      .select(0, 0)
      .mul(factor);
}

DiTLinear linear(std::int64_t out, std::int64_t in) {
  return {numbers({out, in}, 1 / std::sqrt(double(in))), numbers({out}, 0.1)};
}

/// A random DiT of 3 channels and 3 classes, the same one for a seed.
Network random_dit(Shape const& shape, std::int64_t seed, at::ScalarType type, DiTOptions const& options = {}) {
  next_seed = 1000 * seed;
  const std::int64_t w = shape.width, tokens = shape.tokens_each_way * shape.tokens_each_way,
                     of_patch = 3 * shape.patch * shape.patch;
  DiTWeights weights{.x_embedder = linear(w, of_patch),
                     .t_embedder0 = linear(w, 256),
                     .t_embedder2 = linear(w, w),
                     .y_embedder = numbers({4, w}, 1),
                     .pos_embed = numbers({1, tokens, w}, 1),
                     .modulation = linear((6 * shape.depth + 2) * w, w),
                     .blocks = {},
                     .final_layer = linear(of_patch, w),
                     .heads = shape.heads,
                     .patch = shape.patch};
  for (std::int64_t b = 0; b < shape.depth; ++b) {
    weights.blocks.push_back({linear(3 * w, w), linear(w, w), linear(4 * w, w), linear(w, 4 * w)});
  }
  const auto convert = [&](DiTLinear& layer) {
    layer.weight = layer.weight.to(type);
    layer.bias = layer.bias.to(type);
  };
  for (DiTLinear* layer :
       {&weights.x_embedder, &weights.t_embedder0, &weights.t_embedder2, &weights.modulation, &weights.final_layer}) {
    convert(*layer);
  }
  for (DiTWeights::Block& block : weights.blocks) {
    for (DiTLinear* layer : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) convert(*layer);
  }
  weights.y_embedder = weights.y_embedder.to(type);
  weights.pos_embed = weights.pos_embed.to(type);
  const std::int64_t size = shape.tokens_each_way * shape.patch;
  return Network(DiT(std::move(weights), options), {.channels = 3,
                                                    .height = size,
                                                    .width = size,
                                                    .num_classes = 3,
                                                    .null_class = 3,
                                                    .noise_schedule = NoiseSchedule::linear()});
}

/// Random mixes a case; TSTITCH_MIXES asks for more.
int mixes() {
  char const* const asked = std::getenv("TSTITCH_MIXES");
  return asked ? std::atoi(asked) : 3;
}

/// More of them than there are cores take minutes.
std::vector<int> thread_counts() {
  if (std::getenv("TSTITCH_MIXES")) return {1, 2, 3, 8};
  return {1, 3};
}

/// With so many threads of torch's.
struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

/// Bytes of a modulation table with so many rows.
std::int64_t rows(Shape const& shape, std::int64_t count) {
  return count * (6 * shape.depth + 2) * shape.width * 4;
}

}  // namespace

TEST_CASE("an image by the engine has the same bits whatever is drawn before and beside it") {
  const c10::AutoGradMode no_gradients(false);
  const Shape small{.width = 40, .heads = 2, .depth = 2, .tokens_each_way = 3, .patch = 1},
      large{.width = 96, .heads = 4, .depth = 3, .tokens_each_way = 3, .patch = 1};
  struct Way {
    std::string name;
    at::ScalarType type;
    DiTOptions small, large;
  };
  const std::vector<double> inputs_small(8, 6.0), inputs_large(12, 6.0);
  const std::vector<Way> ways{
      {"float32", at::kFloat, {}, {}},
      {"a table of 3 rows", at::kFloat, {.modulation_bytes = rows(small, 3)}, {.modulation_bytes = rows(large, 3)}},
      {"a table of 19 rows", at::kFloat, {.modulation_bytes = rows(small, 19)}, {.modulation_bytes = rows(large, 19)}},
      {"no table", at::kFloat, {.modulation_bytes = 0}, {.modulation_bytes = 0}},
      {"bfloat16", at::kBFloat16, {}, {}},
      {"8 bits", at::kFloat, {.e4m3_inputs = inputs_small}, {.e4m3_inputs = inputs_large}},
      {"8 bits, plain", at::kBFloat16, {.plain = true, .e4m3_inputs = inputs_small}, {.plain = true}}};
  for (const int threads : thread_counts()) {
    const Threads as_many(threads);
    same_bits::Images float32;
    for (Way const& way : ways) {
      same_bits::Images other;
      // What is kept is nobody's business: the first four are one network.
      same_bits::Images& images = way.type == at::kFloat && way.small.e4m3_inputs.empty() ? float32 : other;
      std::mt19937 random(unsigned(threads) + 7);
      int differ = 0;
      for (int mix = 0; mix < mixes(); ++mix) {
        const std::vector<Network> networks{random_dit(small, 1, way.type, way.small),
                                            random_dit(large, 2, way.type, way.large)};
        for (int run = 0; run < 4; ++run) differ += images.draw(networks, random);
      }
      INFO(way.name << ", " << threads << " threads");
      CHECK(differ == 0);
    }
  }
}

TEST_CASE("an image has the same bits also when several threads draw") {
  const Shape small{.width = 40, .heads = 2, .depth = 2, .tokens_each_way = 3, .patch = 1},
      large{.width = 96, .heads = 4, .depth = 3, .tokens_each_way = 3, .patch = 1};
  same_bits::Images images;
  for (const std::int64_t kept : {3, 19}) {
    const std::vector<Network> networks{random_dit(small, 1, at::kFloat, {.modulation_bytes = rows(small, kept)}),
                                        random_dit(large, 2, at::kFloat, {.modulation_bytes = rows(large, kept)})};
    std::atomic<int> differ = 0;
    std::vector<std::thread> threads;
    for (unsigned k = 0; k < 8; ++k) {
      threads.emplace_back([&, k] {
        const Threads one(1);
        std::mt19937 random(k);
        for (int mix = 0; mix < mixes(); ++mix) differ += images.draw(networks, random);
      });
    }
    for (std::thread& each : threads) each.join();
    CHECK(differ == 0);
  }
}

TEST_CASE("an image of the bundled pair has the same bits whatever is drawn before and beside it") {
  const c10::AutoGradMode no_gradients(false);
  const Threads one(1);  // several that wait for a core take minutes here
  const std::string small = TSTITCH_MODELS "/cifar10_dit_small.pt", large = TSTITCH_MODELS "/cifar10_dit_large.pt";
  const auto inputs = [](std::string const& path) {
    std::vector<double> found = read_network_info(path).architecture.e4m3_inputs;
    return found.empty() ? std::vector<double>(std::size_t(4 * read_network_info(path).architecture.depth), 20.0)
                         : found;
  };
  using Load = std::function<Network(std::string const&)>;
  const std::vector<std::pair<std::string, Load>> backends{
      {"TorchScript", [](std::string const& path) { return load_torchscript(path); }},
      {"engine", [](std::string const& path) { return load_dit(path); }},
      {"engine, bfloat16", [](std::string const& path) { return load_dit(path, {.dtype = at::kBFloat16}); }},
      {"engine, 8 bits", [&](std::string const& path) { return load_dit(path, {}, {.e4m3_inputs = inputs(path)}); }}};
  for (auto const& [name, load] : backends) {
    INFO(name);
    const std::vector<Network> networks{load(small), load(large)};
    const DDIM sampler{networks[0].noise_schedule(), Stitch{0.5}, {.steps = 2}};
    const auto draw = [&](std::vector<std::int64_t> labels, std::vector<std::uint64_t> seeds, std::int64_t batch) {
      const Request request{.labels = std::move(labels),
                            .seeds = std::move(seeds),
                            .guidance = {.scale = 1.5},
                            .batch_size = batch,
                            .pad_batches = true};
      return sampler.sample(networks, request).images;
    };
    const at::Tensor first = draw({3}, {7}, 3);
    CHECK(draw({0, 1, 2, 9, 8, 3, 4, 5}, {1, 2, 3, 4, 5, 7, 0, 9}, 8).select(0, 5).equal(first.select(0, 0)));
    CHECK(draw({5, 3}, {0, 7}, 2).select(0, 1).equal(first.select(0, 0)));
    if (!std::getenv("TSTITCH_MIXES")) continue;
    same_bits::Images images;
    std::mt19937 random(3);
    int differ = 0;
    for (int mix = 0; mix < mixes(); ++mix) differ += images.draw({load(small), load(large)}, random);
    CHECK(differ == 0);
  }
}
