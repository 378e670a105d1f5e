#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <tstitch/file/dit.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/study/calibration.hpp>

#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "../network_metadata.hpp"
#include "../nvrtc.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const std::string small_file = TSTITCH_MODELS "/cifar10_dit_small.pt";
const std::string large_file = TSTITCH_MODELS "/cifar10_dit_large.pt";

/// The largest difference, relative to the RMS of what is expected.
double relative(at::Tensor const& got, at::Tensor const& expected) {
  REQUIRE(got.sizes() == expected.sizes());
  const at::Tensor a = got.to(at::kFloat), b = expected.to(at::kFloat);
  return a.sub(b).abs().max().item<double>() / b.square().mean().sqrt().item<double>();
}

at::Tensor pictures(std::int64_t n) {
  std::vector<std::uint64_t> seeds;
  for (std::int64_t i = 0; i < n; ++i) seeds.push_back(std::uint64_t(i));
  return noise(seeds, NoiseAddress::initial(), {3, 32, 32}, at::kFloat);
}

Condition labelled(std::vector<std::int64_t> const& labels, bool known = true) {
  return {.labels = tstitch::detail::to_device(labels, at::kCPU),
          .host_labels = known ? labels : std::vector<std::int64_t>()};
}

at::Tensor times(double t, std::int64_t n) {
  return tstitch::detail::to_device(std::vector<std::int64_t>(std::size_t(n), std::int64_t(t)), at::kCPU);
}

/// What a file says about its network.
torch::jit::ExtraFilesMap metadata_of(std::string const& path) {
  caffe2::serialize::PyTorchStreamReader archive(path);
  torch::jit::ExtraFilesMap found;
  for (std::string const& name : archive.getAllRecords()) {
    if (!name.starts_with("extra/")) continue;
    const auto [data, size] = archive.getRecord(name);
    found[name.substr(6)] = std::string(static_cast<char const*>(data.get()), size);
  }
  return found;
}

}  // namespace

TEST_CASE("the native engine computes what the TorchScript network computes") {
  const c10::AutoGradMode no_gradients(false);
  for (std::string const& file : {small_file, large_file}) {
    const Network oracle = load_torchscript(file), native = load_dit(file);
    const Network plain = load_dit(file, {}, {.plain = true});
    CHECK(native.info().name == oracle.info().name);
    const at::Tensor x = pictures(3);
    for (const double t : {999.0, 400.0, 0.0}) {
      const Condition condition = labelled({3, 10, 3});
      const at::Tensor expected = oracle(x, times(t, 3), condition);
      // Matrix products of another order: a float32 forward is exact to about 1e-5.
      CHECK(relative(native(x, times(t, 3), condition, t), expected) < 5e-5);
      CHECK(relative(native(x, times(t, 3), condition), expected) < 5e-5);
      CHECK(relative(native(x, times(t, 3), labelled({3, 10, 3}, false), t), expected) < 5e-5);
      CHECK(relative(plain(x, times(t, 3), condition, t), expected) < 5e-5);
    }
    // Each row at a timestep of its own.
    const at::Tensor each = tstitch::detail::to_device({5, 800, 44}, at::kCPU);
    const at::Tensor expected = oracle(x, each, labelled({0, 1, 2}));
    CHECK(relative(native(x, each, labelled({0, 1, 2})), expected) < 5e-5);
    CHECK(relative(native(x, times(44, 3), labelled({0, 1, 2}), 44.0), expected) > 1e-2);  // the test would notice
  }
}

TEST_CASE("modulations are looked up, whatever was kept before") {
  const c10::AutoGradMode no_gradients(false);
  const Network oracle = load_torchscript(small_file);
  const at::Tensor x = pictures(4);
  std::map<std::pair<std::vector<std::int64_t>, double>, at::Tensor> known;
  const auto expected = [&](std::vector<std::int64_t> const& labels, double t) {
    at::Tensor& output = known[{labels, t}];
    if (!output.defined()) output = oracle(x, times(t, 4), labelled(labels));
    return output;
  };
  const std::int64_t row = 38 * 128 * 4;  // bytes of a timestep and label: 6 x 6 + 2 slots of width 128
  for (const std::int64_t bytes : {std::int64_t(0), row - 1, row, 2 * row, 7 * row, std::int64_t(1) << 30}) {
    const Network native = load_dit(small_file, {}, {.modulation_bytes = bytes});
    const std::vector<double> planned{999, 500, 1};
    native.prepare(planned, labelled({3, 10, 3, 10}));
    for (std::vector<std::int64_t> const& labels :
         {std::vector<std::int64_t>{3, 10, 3, 10}, {10, 3, 3, 3}, {1, 2, 3, 4}, {3, 10, 3, 10}}) {
      for (const double t : {999.0, 500.0, 1.0, 777.0, 999.0}) {
        REQUIRE(relative(native(x, times(t, 4), labelled(labels), t), expected(labels, t)) < 5e-5);
      }
    }
  }
}

TEST_CASE("x may be given once for both halves of guidance, and t not at all") {
  const c10::AutoGradMode no_gradients(false);
  std::vector<std::vector<std::int64_t>> shapes;
  const Capture capture = [&](TensorFunction function) -> TensorFunction {
    return [&, function](std::vector<at::Tensor> const& inputs) {
      shapes.push_back(inputs[0].sizes().vec());
      return function(inputs);
    };
  };
  const at::Tensor x = pictures(3), twice = x.repeat({2, 1, 1, 1});
  for (const std::int64_t bytes : {std::int64_t(1) << 30, std::int64_t(0)}) {
    const Network native = load_dit(small_file, {}, {.modulation_bytes = bytes}).captured(capture);
    REQUIRE((native.knows_timestep() && native.repeats_x()));
    for (const bool known : {true, false}) {
      const Condition condition = labelled({3, 1, 4, 10, 10, 10}, known);
      const at::Tensor expected = native(twice, times(9, 6), condition, 9.0);
      CHECK(native(x, times(9, 6), condition, 9.0).equal(expected));
      CHECK(native(x, {}, condition, 9.0).equal(expected));
      CHECK(native(x, times(9, 6), condition).equal(native(twice, times(9, 6), condition)));
    }
  }
  CHECK(shapes.size() == 20);
  for (auto const& shape : shapes) CHECK(shape == std::vector<std::int64_t>{2, 3, 3, 32, 32});  // one to a graph
}

TEST_CASE("the native engine draws any size, with positions scaled to those of training") {
  const c10::AutoGradMode no_gradients(false);
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/any_size.pt";
  torch::jit::ExtraFilesMap metadata = metadata_of(small_file);
  for (char const* key : {"input_channels", "input_height", "input_width"}) {
    metadata.erase("tstitch/" + std::string(key));
  }
  metadata["tstitch/input_shape"] = "3 * *";
  torch::jit::load(small_file).save(path, metadata);
  const Network fixed = load_dit(small_file), network = load_dit(path), plain = load_dit(path, {}, {.plain = true});
  CHECK(network.info().shape == std::vector<std::int64_t>{3, 0, 0});
  const Condition condition = labelled({3, 10});
  CHECK(network(pictures(2), times(9, 2), condition, 9.0).equal(fixed(pictures(2), times(9, 2), condition, 9.0)));
  std::vector<std::vector<std::int64_t>> positions;
  const Network captured = network.captured([&](TensorFunction function) -> TensorFunction {
    return [&, function](std::vector<at::Tensor> const& inputs) {
      positions.push_back(inputs.at(2).sizes().vec());
      return function(inputs);
    };
  });
  for (auto [height, width] : {std::array<std::int64_t, 2>{16, 48}, {2, 2}, {40, 36}, {32, 32}, {16, 48}}) {
    const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, height, width}, at::kFloat);
    const at::Tensor out = network(x, times(9, 2), condition, 9.0);
    CHECK(out.sizes() == at::IntArrayRef({2, 6, height, width}));
    CHECK(relative(plain(x, times(9, 2), condition, 9.0), out) < 5e-5);
    CHECK(captured(x, times(9, 2), condition, 9.0).equal(out));
    CHECK(positions.back() == std::vector<std::int64_t>{1, height / 2 * (width / 2), 128});
  }
  const auto message = [&](std::vector<std::int64_t> const& sizes) {
    return message_of<std::invalid_argument>(
        [&] { network(at::zeros(sizes, at::kFloat), times(9, 2), condition, 9.0); });
  };
  CHECK_THAT(message({2, 3, 32, 33}), ContainsSubstring("x must be [n or n / 2, 3, H, W] with 2 labels and patches of "
                                                        "2 by 2, got [2, 3, 32, 33]"));
  CHECK_THAT(message({2, 3, 0, 32}), ContainsSubstring("got [2, 3, 0, 32]"));
  CHECK_THAT(message_of<std::invalid_argument>([&] { largest_inputs(path, {}, {.steps = 2, .images = 1}); }),
             ContainsSubstring("CalibrationOptions::shape must say the sizes"));
  CHECK(largest_inputs(path, {}, {.steps = 2, .images = 1, .shape = {3, 16, 8}}).size() == 4 * 6);
  // A table that was learnt says nothing of other sizes.
  torch::jit::Module learnt = torch::jit::load(small_file);
  for (auto const& each : learnt.named_buffers()) {
    if (each.name == "pos_embed") each.value.mul_(1.1);
  }
  learnt.save(path, metadata);
  CHECK_THAT(
      message_of<std::runtime_error>([&] { load_dit(path); }),
      ContainsSubstring("must have the sine-cosine table of its grid as pos_embed where x has any size, got one"));
}

TEST_CASE("what the native engine cannot run is refused") {
  const c10::AutoGradMode no_gradients(false);
  const Network native = load_dit(small_file);
  const auto message = [&](at::Tensor const& x, at::Tensor const& t, std::vector<std::int64_t> const& labels,
                           std::optional<double> timestep = 9.0) {
    return message_of<std::invalid_argument>([&] { native(x, t, labelled(labels), timestep); });
  };
  const std::string shape =
      "tstitch::DiT: x must be [n or n / 2, 3, H, W] with 6 labels and 256 patches of 2 by 2, got ";
  const std::vector<std::int64_t> six{3, 1, 4, 10, 10, 10};
  CHECK(message(pictures(2), {}, six) == shape + "[2, 3, 32, 32]");
  CHECK(message(pictures(6).narrow(1, 0, 2), {}, six) == shape + "[6, 2, 32, 32]");
  CHECK(message(pictures(6).narrow(2, 0, 16), {}, six) == shape + "[6, 3, 16, 32]");
  CHECK(message(pictures(6).repeat({1, 1, 2, 2}), {}, six) == shape + "[6, 3, 64, 64]");
  CHECK(message(pictures(6).narrow(3, 0, 31), {}, six) == shape + "[6, 3, 32, 31]");
  CHECK(message(pictures(6)[0], {}, six) == shape + "[3, 32, 32]");
  CHECK(message({}, {}, six) == shape + "none");
  CHECK(message(pictures(1), {}, {}) == "tstitch::DiT: labels must be [n], got [0]");
  CHECK(message(pictures(6), {}, six, std::nullopt) == "tstitch::DiT: t must be [6], or the timestep given, got none");
  CHECK(message(pictures(6), times(9, 3), six) == "tstitch::DiT: t must be [6], or the timestep given, got [3]");
}

TEST_CASE("guidance by the gradient of x_0 is refused by the native engine, which has none") {
  const Network native = load_dit(small_file);
  const DDIM sampler{native.noise_schedule(), SingleNetwork{}, {.steps = 2}};
  Request request{.labels = {3}};
  request.gradient.log_density = [](at::Tensor const& x, auto const&...) { return x.square().flatten(1).sum(1); };
  CHECK(message_of<std::runtime_error>([&] { sampler.sample({native}, request); }) ==
        "tstitch::Network 'cifar10-dit-small': guidance by the gradient of x_0 needs a network with gradients, as "
        "load_torchscript's have, got an output without");
  request.gradient.of = DensityOf::x;
  CHECK(sampler.sample({native}, request).finished);
}

TEST_CASE("modulations may be asked for twice, and outlive a run in inference mode") {
  const c10::AutoGradMode no_gradients(false);
  const Network native = load_dit(small_file), oracle = load_torchscript(small_file);
  const at::Tensor x = pictures(2);
  const auto check = [&](double t, std::vector<std::int64_t> const& labels) {
    CHECK(relative(native(x, {}, labelled(labels), t), oracle(x, times(t, 2), labelled(labels))) < 5e-5);
  };
  {
    const c10::InferenceMode inference;
    native.prepare(std::vector{5.0, 7.0, 5.0, 5.0}, labelled({1, 10, 1}));
    native(x, {}, labelled({1, 10}), 5.0);
  }
  for (const double t : {5.0, 9.0, 7.0, 300.0, 5.0}) check(t, {1, 10});
  for (const double t : {5.0, 9.0, 7.0}) check(t, {10, 2});
}

TEST_CASE("a stitched trajectory is that of the TorchScript pair, and the two may share one") {
  const std::vector<Network> oracle = load_torchscript_networks({small_file, large_file});
  const std::vector<Network> native{load_dit(small_file), load_dit(large_file)};
  const DDIM sampler{oracle[0].noise_schedule(), Stitch{0.5}, {.steps = 4}};
  const Request request{.labels = {7, 3}, .seed = 5, .guidance = {.scale = 2}};
  const at::Tensor expected = sampler.sample(oracle, request).images;
  CHECK(native[0].prepares());
  CHECK_FALSE(oracle[0].prepares());
  CHECK(relative(sampler.sample(native, request).images, expected) < 2e-4);
  CHECK(relative(sampler.sample({native[0], oracle[1]}, request).images, expected) < 2e-4);
}

TEST_CASE("bfloat16 is as far from float32 as the TorchScript network is") {
  const c10::AutoGradMode no_gradients(false);
  const TorchScriptOptions half{.dtype = at::kBFloat16};
  const at::Tensor x = pictures(2), expected = load_torchscript(small_file)(x, times(500, 2), labelled({1, 10}));
  const double of_oracle = relative(load_torchscript(small_file, half)(x, times(500, 2), labelled({1, 10})), expected);
  const double of_native = relative(load_dit(small_file, half)(x, times(500, 2), labelled({1, 10}), 500.0), expected);
  CHECK(of_oracle > 1e-3);
  CHECK(of_native < 2 * of_oracle);
}

TEST_CASE("an engine for DiTs refuses shapes out of range, and conditions that it would ignore") {
  const auto message = [](std::string const& key, std::string const& value) {
    torch::jit::ExtraFilesMap metadata = metadata_of(small_file);
    metadata["tstitch/" + key] = value;
    std::filesystem::create_directories(TSTITCH_TEST_DATA);
    const std::string path = TSTITCH_TEST_DATA "/odd_shape.pt";
    torch::jit::load(small_file).save(path, metadata);
    return message_of<std::runtime_error>([&] { load_dit(path); });
  };
  CHECK_THAT(message("conditions", "text float 77 768"),
             ContainsSubstring("odd_shape.pt': must take no conditions but a label, got 'text'"));
  CHECK_THAT(message("forecast", "feature"),
             ContainsSubstring("odd_shape.pt': tstitch/forecast must be residual for the engine, got 'feature'"));
  for (auto const& [key, value] : std::map<std::string, std::string>{
           {"width", "0"}, {"depth", "0"}, {"heads", "0"}, {"patch_size", "0"}, {"mlp_ratio", "0"}, {"heads", "3"}}) {
    CHECK_THAT(message(key, value), ContainsSubstring("must state the width, depth, heads, patch_size and mlp_ratio"));
  }
  const NetworkInfo info = read_network_info(small_file);
  for (const double ratio : {std::nan(""), 1e300, -1.0, 0.0}) {
    NetworkInfo stated = info;
    stated.architecture.mlp_ratio = ratio;
    const std::string path = TSTITCH_TEST_DATA "/unstated.pt";
    torch::jit::load(small_file).save(path);
    CHECK_THAT(
        message_of<std::runtime_error>([&] { load_dit(path, {.info = stated}); }),
        ContainsSubstring("must state the width, depth, heads, patch_size and mlp_ratio of a DiT, got width 128"));
  }
}

TEST_CASE("in 8 bits the network is a little off, and layers see what the calibration saw") {
  const c10::AutoGradMode no_gradients(false);
  const std::vector<double> largest = largest_inputs(small_file, {}, {.steps = 4, .images = 2});
  REQUIRE(largest.size() == 4 * 6);
  for (const double value : largest) CHECK((value > 0.1 && value < 1000));
  // Proj stays as it is where the attention before it would not round for it.
  torch::jit::ExtraFilesMap narrow_heads = metadata_of(small_file);
  narrow_heads["tstitch/heads"] = "4";
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  torch::jit::load(small_file).save(TSTITCH_TEST_DATA "/narrow_heads.pt", narrow_heads);
  const std::vector<double> of_narrow =
      largest_inputs(TSTITCH_TEST_DATA "/narrow_heads.pt", {}, {.steps = 4, .images = 2});
  for (std::size_t layer = 0; layer < largest.size(); ++layer) CHECK((of_narrow[layer] > 0) == (layer % 4 != 1));
  const at::Tensor x = pictures(2);
  const Condition condition = labelled({1, 10});
  const at::Tensor expected = load_torchscript(small_file)(x, times(500, 2), condition);
  for (const bool plain : {false, true}) {
    const Network eighth = load_dit(small_file, {}, {.plain = plain, .e4m3_inputs = largest});
    const at::Tensor got = eighth(x, times(500, 2), condition, 500.0);
    const double off =
        got.sub(expected).square().mean().sqrt().item<double>() / expected.square().mean().sqrt().item<double>();
    CHECK(off > 1e-3);  // of 3 bits of mantissa
    CHECK(off < 4e-2);
  }
  // Layers of 0 stay as they are, whichever they are. What the others do may cancel each other a little.
  const double of_all =
      relative(load_dit(small_file, {}, {.e4m3_inputs = largest})(x, times(500, 2), condition, 500.0), expected);
  for (std::size_t kind = 0; kind < 4; ++kind) {
    std::vector<double> some(largest.size(), 0.0);
    for (std::size_t layer = kind; layer < some.size(); layer += 4) some[layer] = largest[layer];
    for (const bool plain : {false, true}) {
      const Network mixed = load_dit(small_file, {}, {.plain = plain, .e4m3_inputs = some});
      const double off = relative(mixed(x, times(500, 2), condition, 500.0), expected);
      CHECK(off > 1e-4);
      CHECK(off < 1.2 * of_all);
    }
  }
  // Inputs beyond what was seen are clipped, which must not be free of charge.
  std::vector<double> narrow = largest;
  for (double& value : narrow) value /= 40;
  CHECK(relative(load_dit(small_file, {}, {.e4m3_inputs = narrow})(x, times(500, 2), condition, 500.0), expected) >
        0.2);
  CHECK_THAT(message_of<std::invalid_argument>([] {
               load_dit(small_file, {}, {.e4m3_inputs = {1, 2}});
             }),
             ContainsSubstring("e4m3_inputs must be one for each of the 24 layers, got 2"));

  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity(), -1.0, 1e-40, 1e40}) {
    std::vector<double> odd = largest;
    odd[5] = value;
    CHECK(message_of<std::invalid_argument>([&] { load_dit(small_file, {}, {.e4m3_inputs = odd}); }) ==
          "tstitch::DiT: e4m3_inputs must be 0 or in [1e-30, 1e30], got " + tstitch::detail::text(value));
  }

  const at::Tensor values = tstitch::detail::host_tensor({4}, at::kFloat);
  const std::array<float, 4> given{-1000, 0.3f, 1.0625f, 3};
  std::copy(given.begin(), given.end(), values.mutable_data_ptr<float>());
  const at::Tensor rounded = tstitch::detail::to_e4m3(values, 2).to(at::kFloat).mul(2);
  const std::array<float, 4> nearest{-896, 0.3125f, 1.0f, 3};  // 3 bits; ties to even; twice 448 is the largest
  for (int i = 0; i < 4; ++i) CHECK(rounded.const_data_ptr<float>()[i] == nearest[std::size_t(i)]);
}

TEST_CASE("what is no number is refused in 8 bits, and by the calibration") {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/no_number.pt";
  const std::vector<double> ones(4 * 6, 1.0);
  const auto save = [&](std::string const& name, double value) {
    torch::jit::Module module = torch::jit::load(small_file);
    const c10::AutoGradMode no_gradients(false);
    for (auto const& each : module.named_parameters()) {
      if (each.name == name) each.value.view({-1}).narrow(0, 7, 1).fill_(value);
    }
    module.save(path, metadata_of(small_file));
  };
  const auto calibrated = [&] {
    return message_of<std::runtime_error>([&] { largest_inputs(path, {}, {.steps = 4, .images = 2}); });
  };
  const std::string place = "tstitch::largest_inputs: '" + path + "': ";
  for (const double value : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    save("blocks.2.mlp.fc1.weight", value);
    CHECK_THAT(message_of<std::invalid_argument>([&] { load_dit(path, {}, {.e4m3_inputs = ones}); }),
               ContainsSubstring("weights in 8 bits must be finite, got "));
    // Finite as far as fc1 of the block, whose input is layer 10.
    CHECK_THAT(calibrated(),
               ContainsSubstring(place + "inputs must be finite, got ") && ContainsSubstring("in layer 11"));
    save("blocks.0.attn.qkv.bias", value);
    CHECK_THAT(calibrated(),
               ContainsSubstring(place + "inputs must be finite, got ") && ContainsSubstring("in layer 1"));
    save("final_layer.linear.bias", value);
    CHECK_THAT(calibrated(), ContainsSubstring(place + "outputs must be finite, got nan or infinity at step 0"));
  }
}

TEST_CASE("weights in 8 bits are those of the file where it has them") {
  const c10::AutoGradMode no_gradients(false);
  const std::string path = TSTITCH_TEST_DATA "/e4m3.pt";
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const torch::jit::Module module = torch::jit::load(small_file);
  const auto file = tstitch::detail::open_file(tstitch::detail::torchscript_file, small_file);
  const auto weights = tstitch::detail::tensors_of(
      std::make_shared<tstitch::detail::StoredModule>(tstitch::detail::open_torchscript(small_file, file)));
  constexpr std::array<char const*, 4> names{"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"};
  // The nearest to half of each weight, which no loader would find by itself; none for proj.
  std::string codes, scales;
  for (int layer = 0; layer < 4 * 6; ++layer) {
    if (layer % 4 == 1) {
      scales += "0\n";
      continue;
    }
    const at::Tensor weight =
        weights.at("blocks." + std::to_string(layer / 4) + "." + names[std::size_t(layer % 4)] + ".weight")
            .read(at::kCPU)
            .to(at::kFloat);
    const double scale = weight.abs().max().item<double>() / 448;
    const at::Tensor rounded = tstitch::detail::to_e4m3(weight.div(2), scale);
    codes.append(static_cast<char const*>(rounded.const_data_ptr()), std::size_t(rounded.numel()));
    char text[32];
    std::snprintf(text, sizeof text, "%.9g\n", scale);
    scales += text;
  }
  const auto write = [&](std::string const& bytes) {
    torch::jit::ExtraFilesMap extra = metadata_of(small_file);
    std::string inputs;
    for (int layer = 0; layer < 4 * 6; ++layer) inputs += "20\n";
    extra["tstitch/e4m3_inputs"] = inputs;
    extra["tstitch/e4m3_weight_scales"] = scales;
    extra["tstitch/e4m3_weights"] = bytes;
    module.save(path, extra);
  };
  write(codes);
  const std::vector<double> inputs = read_network_info(path).architecture.e4m3_inputs;
  const at::Tensor x = pictures(2);
  const Condition condition = labelled({1, 10});
  const auto of = [&](Network const& network) { return network(x, times(500, 2), condition, 500.0); };
  // What they stand for: the same network with half of these weights.
  torch::jit::Module halved = torch::jit::load(small_file);
  for (auto const& each : halved.named_parameters()) {
    for (char const* const name : {"attn.qkv.weight", "mlp.fc1.weight", "mlp.fc2.weight"}) {
      if (each.name.starts_with("blocks.") && each.name.ends_with(name)) each.value.div_(2);
    }
  }
  const std::string expected_path = TSTITCH_TEST_DATA "/halved.pt";
  halved.save(expected_path, metadata_of(small_file));
  CHECK(relative(of(load_dit(path, {}, {.e4m3_inputs = inputs})), of(load_dit(expected_path))) < 4e-2);
  CHECK(of(load_dit(path)).equal(of(load_dit(small_file))));  // in other types the weights are the others
  std::vector<double> none(inputs.size(), 0.0);
  CHECK(of(load_dit(path, {}, {.e4m3_inputs = none})).equal(of(load_dit(small_file))));

  const auto message = [&](std::string const& bytes) {
    write(bytes);
    return message_of<std::runtime_error>([&] { load_dit(path, {}, {.e4m3_inputs = inputs}); });
  };
  CHECK_THAT(message(codes.substr(1)),
             ContainsSubstring("e4m3.pt': tstitch/e4m3_weights must have " + std::to_string(codes.size()) +
                               " bytes, got " + std::to_string(codes.size() - 1)));
  std::string broken = codes;
  broken.back() = char(0xff);
  CHECK_THAT(message(broken), ContainsSubstring("tstitch/e4m3_weights must be finite, got NaN in layer 23"));
}

TEST_CASE("only what follows the modulations is captured") {
  const c10::AutoGradMode no_gradients(false);
  int made = 0, calls = 0;
  std::vector<std::vector<std::int64_t>> shapes;
  const Capture capture = [&](TensorFunction function) -> TensorFunction {
    ++made;
    return [&, function](std::vector<at::Tensor> const& inputs) {
      ++calls;
      shapes.clear();
      for (at::Tensor const& input : inputs) shapes.push_back(input.sizes().vec());
      return function(inputs);
    };
  };
  const at::Tensor x = pictures(2);
  {
    const Network native = load_dit(small_file), captured = native.captured(capture);
    CHECK(captured(x, times(9, 2), labelled({1, 2}), 9.0).equal(native(x, times(9, 2), labelled({1, 2}), 9.0)));
    CHECK(captured.prepares());
    CHECK(captured.info().name == native.info().name);
  }
  CHECK(made == 3);  // alone, with what is kept for forecasts, and forecast
  CHECK(calls == 1);
  CHECK(shapes == std::vector<std::vector<std::int64_t>>{{2, 1, 3, 32, 32}, {2, 38, 128}});

  // Any other network is captured whole, with all tensors that it is given.
  const Network other([](at::Tensor const& y, at::Tensor const& t, Condition const& c) {
    return y.add(t.view({-1, 1, 1, 1})).add(c.at("shift").view({-1, 1, 1, 1})).add(c.labels.view({-1, 1, 1, 1}));
  });
  Condition condition = labelled({4, 5});
  condition.tensors.emplace_back("shift", at::ones({2}));
  const Network captured = other.captured(capture);
  for (int call = 0; call < 2; ++call) {
    CHECK(captured(x, times(9, 2), condition).equal(other(x, times(9, 2), condition)));
  }
  CHECK(made == 4);
  CHECK(calls == 3);
  CHECK(shapes == std::vector<std::vector<std::int64_t>>{{2, 3, 32, 32}, {2}, {2}, {2}});
}

TEST_CASE("what is no DiT is refused with the reason") {
  const auto message = [](std::map<std::string, std::string> const& changed) {
    const std::string path = TSTITCH_TEST_DATA "/no_dit.pt";
    std::filesystem::create_directories(TSTITCH_TEST_DATA);
    torch::jit::Module module("no_dit");
    module.register_parameter("pos_embed", at::zeros({1, 256, 8}), false);
    module.define("def forward(self, x, t, y):\n  return x + self.pos_embed.sum()\n");
    Metadata metadata = network_metadata({{"input_height", "32"},
                                          {"input_width", "32"},
                                          {"num_classes", "10"},
                                          {"architecture", "dit"},
                                          {"width", "8"},
                                          {"depth", "1"},
                                          {"heads", "2"},
                                          {"patch_size", "2"},
                                          {"mlp_ratio", "4.0"}});
    for (auto const& [key, value] : changed) metadata[key] = value;
    torch::jit::ExtraFilesMap extra;
    for (auto const& [key, value] : metadata) extra["tstitch/" + key] = value;
    module.save(path, extra);
    return message_of<std::runtime_error>([&] { load_dit(path); });
  };
  CHECK_THAT(message({{"architecture", "unet"}}),
             ContainsSubstring("must have the architecture dit, dit_diffusers, sit or sd3, got 'unet'"));
  CHECK_THAT(message({{"heads", "3"}}), ContainsSubstring("must state the width, depth, heads, patch_size and "
                                                          "mlp_ratio of a DiT, got width 8, depth 1, heads 3"));
  CHECK_THAT(message({}), ContainsSubstring("must hold x_embedder.proj.weight of shape [8, 3, 2, 2], got none"));
  CHECK_THAT(message_of<std::runtime_error>([] { load_dit("/nowhere"); }),
             ContainsSubstring("must be a file that can be read, got none"));
}

TEST_CASE("the kernels compile for every type and width, without a GPU") {
  if (!has_nvrtc()) return;
  for (const int architecture : {80, 89, 90}) {
    for (const int element : {0, 1, 2}) {
      for (const int width : {8, 128, 384, 1152, 2056, 8192}) {
        REQUIRE(tstitch::detail::DiTKernelShape::fits(width));
        REQUIRE(
            tstitch::detail::compile_cuda(tstitch::detail::dit_kernel(element, {width}), architecture).substr(1, 3) ==
            "ELF");
      }
    }
  }
  CHECK_FALSE(tstitch::detail::DiTKernelShape::fits(12));
  for (const int element : {1, 2}) {
    for (const int head : {8, 16, 64, 72, 128}) {
      REQUIRE(tstitch::detail::FewRowsAttention::fits(head));
      for (const bool e4m3 : {false, true}) {
        const auto code = [&](auto source, int architecture) {
          return tstitch::detail::compile_cuda(source({.element = element, .head = head, .e4m3 = e4m3}), architecture);
        };
        REQUIRE(code(tstitch::detail::attention_few_rows, 90).substr(1, 3) == "ELF");
        if (e4m3) {
          REQUIRE_THROWS_AS(code(tstitch::detail::attention_few_rows, 80), std::runtime_error);
        } else {
          REQUIRE(code(tstitch::detail::attention_few_rows, 80).substr(1, 3) == "ELF");
        }
        if (!tstitch::detail::ManyRowsAttention::fits(head)) continue;
        REQUIRE(code(tstitch::detail::attention_many_rows, 90).substr(1, 3) == "ELF");
      }
    }
  }
  CHECK_FALSE(tstitch::detail::FewRowsAttention::fits(12));
  CHECK_FALSE(tstitch::detail::FewRowsAttention::fits(136));
  for (const int head : {32, 80, 128}) CHECK_FALSE(tstitch::detail::ManyRowsAttention::fits(head));
  // Threads with channels, in whole warps, and no channel left out.
  for (int width = 8; width <= 8192; width += 8) {
    const tstitch::detail::DiTKernelShape shape{width};
    REQUIRE(shape.threads() * shape.chunks() * 8 >= width);
    REQUIRE(shape.threads() <= 512);
    REQUIRE(shape.threads() % 32 == 0);
  }
}
