#include <tstitch/file/at_once.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/tstitch.hpp>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <sstream>
#include <thread>
#include <tuple>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

/// The metadata with one entry changed, or taken out where the value is "-".
Metadata with(std::string const& key, std::string const& value) {
  Metadata metadata = network_metadata();
  if (value == "-")
    metadata.erase(key);
  else
    metadata[key] = value;
  return metadata;
}

torch::jit::Module tiny(std::string const& forward = "def forward(self, x, t):\n  return x * self.scale\n") {
  torch::jit::Module module("tiny");
  module.register_parameter("scale", tstitch::detail::host_tensor({1}, at::kFloat).fill_(0.5), false);
  module.define(forward);
  return module;
}

std::string saved(torch::jit::Module const& module, Metadata const& metadata) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
  std::ostringstream stream;
  module.save(stream, files);
  return stream.str();
}

std::string path_of(std::string const& name, std::string const& bytes) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

Network from_memory(std::string const& bytes, TorchScriptOptions const& options = {}) {
  std::istringstream stream(bytes);
  return load_torchscript(stream, options);
}

std::string refusal(std::string const& bytes) {
  return message_of<std::runtime_error>([&] { from_memory(bytes); });
}

const std::string small_path = TSTITCH_MODELS "/cifar10_dit_small.pt",
                  large_path = TSTITCH_MODELS "/cifar10_dit_large.pt";

/// The bundled small network, loaded once.
Network const& small_network() {
  static const Network network = load_torchscript(small_path);
  return network;
}

}  // namespace

TEST_CASE("the type that a file has on a GPU must be one that networks run in, unless another is asked for") {
  const auto of = [](at::ScalarType type, std::optional<at::ScalarType> asked = {}) {
    torch::jit::Module module("typed");
    module.register_parameter("count", tstitch::detail::host_tensor({1}, at::kLong), false);
    module.register_parameter("weight", tstitch::detail::host_tensor({1}, type), false);
    return tstitch::detail::type_of(module, {.device = at::kCUDA, .dtype = asked});
  };
  CHECK(of(at::kHalf) == at::kHalf);
  CHECK(of(at::kBFloat16) == at::kBFloat16);
  for (const at::ScalarType type : {at::kDouble, at::kFloat8_e4m3fn}) {
    CHECK(message_of<std::invalid_argument>([&] { of(type); }) ==
          std::string("tstitch::load_torchscript: dtype must be float32, float16 or bfloat16, got ") +
              at::toString(type));
    CHECK(of(type, at::kHalf) == at::kHalf);
  }
}

TEST_CASE("the module of a file is as it was written") {
  const torch::jit::Module module = load_torchscript_module(path_of("module.pt", saved(tiny(), network_metadata())));
  const auto parameters = module.named_parameters();
  REQUIRE(parameters.size() == 1);
  CHECK((*parameters.begin()).name == "scale");
  CHECK((*parameters.begin()).value.item<float>() == 0.5F);
  CHECK_THAT(message_of<std::runtime_error>([] { load_torchscript_module("/nowhere/model.pt"); }),
             ContainsSubstring("'/nowhere/model.pt': must be a file that can be read, got none"));
  CHECK_THAT(
      message_of<std::runtime_error>([] { load_torchscript_module(path_of("no_module.pt", "no archive at all")); }),
      ContainsSubstring("no_module.pt': must be a TorchScript file, got "));
}

TEST_CASE("a file says what it is") {
  const NetworkInfo info = read_network_info(small_path);
  CHECK(info.name == "cifar10-dit-small");
  CHECK(info.prediction_type == PredictionType::epsilon);
  CHECK(info.learned_variance);
  CHECK(info.channels == 3);
  CHECK(info.height == 32);
  CHECK(info.width == 32);
  CHECK(info.num_classes == 10);
  CHECK(info.null_class == 10);
  CHECK(info.class_names.at(7) == "horse");
  CHECK(info.timestep_type == TimestepType::int64);
  CHECK(info.noise_schedule.value().distance(NoiseSchedule::linear()) == 0);
  CHECK(info.decoding == Decoding::pixels);
  CHECK(info.guidance_scale > 1);
  CHECK_FALSE(info.training_data.empty());
  CHECK(info.license == "MIT");
  CHECK(info.images_seen > 0);
  CHECK(info.architecture.kind == "dit");
  CHECK(info.architecture.width == 128);
  CHECK(info.architecture.depth == 6);
  CHECK(info.architecture.heads == 2);
  CHECK(info.architecture.patch_size == 2);
}

TEST_CASE("the bundled files keep the names of their parameters") {
  const torch::jit::Module module = torch::jit::load(small_path);
  std::size_t found = 0;
  for (auto const& parameter : module.named_parameters()) {
    found += parameter.name == "blocks.5.attn.qkv.weight" || parameter.name == "x_embedder.proj.weight" ||
             parameter.name == "final_layer.linear.bias";
    CHECK(parameter.value.scalar_type() == at::kHalf);
  }
  CHECK(found == 3);
}

TEST_CASE("networks load from a file and from a stream, and compute in the type asked for") {
  const std::string bytes = saved(tiny(), network_metadata());
  const std::string path = path_of("tiny.pt", bytes);
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, 8, 8}, at::kFloat);
  const at::Tensor t = tstitch::detail::to_device({5, 5}, at::kCPU);
  const at::Tensor expected = x.mul(0.5);
  CHECK(load_torchscript(path)(x, t, {}).equal(expected));
  CHECK(from_memory(bytes)(x, t, {}).equal(expected));
  for (at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    const at::Tensor y = from_memory(bytes, {.dtype = type})(x, t, {});
    CHECK(y.scalar_type() == type);
    CHECK(y.equal(x.to(type).mul(0.5)));
  }
  CHECK_FALSE(load_torchscript(path)(x, t, {}).requires_grad());
  CHECK(message_of<std::invalid_argument>([&] { from_memory(bytes, {.dtype = at::kLong}); }) ==
        "tstitch::load_torchscript: dtype must be float32, float16 or bfloat16, got Long");
}

TEST_CASE("a network without metadata loads when the caller states what it is") {
  const std::string bytes = saved(tiny(), {});
  const Network network =
      from_memory(bytes, {.info = NetworkInfo{.name = "stated", .channels = 3, .height = 8, .width = 8}});
  CHECK(network.info().name == "stated");
  CHECK_THAT(refusal(bytes), ContainsSubstring("the stream: must carry tstitch metadata"));
}

TEST_CASE("schedules of every kind come back from files") {
  const auto schedule = [](Metadata metadata) { return from_memory(saved(tiny(), metadata)).noise_schedule(); };
  CHECK(schedule(network_metadata()).distance(NoiseSchedule::linear()) == 0);
  CHECK(schedule(with("noise_schedule", "scaled_linear")).distance(NoiseSchedule::scaled_linear(1000, 0.0001, 0.02)) ==
        0);
  CHECK(schedule(with("noise_schedule", "cosine")).distance(NoiseSchedule::cosine()) == 0);
  Metadata table = with("noise_schedule", "alphas_cumprod");
  table["alphas_cumprod"] = "0.9\n0.72\n0.504";
  CHECK(schedule(table).distance(NoiseSchedule::from_alphas_cumprod({0.9, 0.72, 0.504})) == 0);
}

TEST_CASE("a file says which conditions its network takes, and gets them in that order and in its type") {
  Metadata metadata = with("conditions", "text_embedding float 2 3\nsize_ids int64 1\nmask float * *");
  metadata["latent_scale"] = "0.18215";
  const std::string file = saved(
      tiny("def forward(self, x, t, text, sizes, mask):\n"
           "  return x * self.scale + text.sum().to(x.dtype) + sizes.sum().to(x.dtype) * 10 + mask.sum() * 100\n"),
      metadata);
  const Network network = from_memory(file, {.dtype = at::kHalf});
  CHECK(network.info().latent_scale == 0.18215);
  REQUIRE(network.info().conditions.size() == 3);
  CHECK(network.info().conditions[0].shape == std::vector<std::int64_t>{2, 3});
  CHECK_FALSE(network.info().conditions[1].floating);
  CHECK(network.info().conditions[2].shape == std::vector<std::int64_t>{0, 0});
  const auto ones = [](std::vector<std::int64_t> const& shape, at::ScalarType type) {
    return tstitch::detail::host_tensor(shape, type).fill_(1);
  };
  const at::Tensor x = ones({1, 3, 8, 8}, at::kFloat).zero_();
  const Condition condition{.tensors = {{"mask", ones({1, 1, 2}, at::kFloat)},
                                        {"size_ids", ones({1, 1}, at::kLong)},
                                        {"text_embedding", ones({1, 2, 3}, at::kFloat)},
                                        {"of another network", ones({1}, at::kFloat)}}};
  const at::Tensor y = network(x, ones({1}, at::kLong), condition);
  CHECK(y.scalar_type() == at::kHalf);
  CHECK(y.eq(6 + 10 + 200).all().item<bool>());
  CHECK(message_of<std::invalid_argument>([&] { network(x, ones({1}, at::kLong), Condition{}); }) ==
        "tstitch::Condition: must have 'text_embedding', got none of this name");
  CHECK(from_memory(saved(tiny("def forward(self, x, t, text):\n  return x + text.sum()\n"),
                          with("conditions", "text float 2")),
                    {.warm_up_rows = {2}})
            .info()
            .conditions[0]
            .name == "text");

  const auto message = [](std::string const& lines) { return refusal(saved(tiny(), with("conditions", lines))); };
  const std::string key = "tstitch::read_network_info: the stream: tstitch/conditions ";
  CHECK(message("text") == key + "must be lines of a name, float or int64, and sizes, got 'text'");
  CHECK(message("text half 3") == key + "must be one of float, int64, got 'half'");
  CHECK(message("text float 0") == key + "must be lines of a name, float or int64, and sizes, got 'text float 0'");
  CHECK(message("text float x") == key + "must be a number, got 'x'");
  CHECK(message("text float 1\ntext float 2") == key + "must have different names, got 'text' twice");
  CHECK(message("text float 1") ==
        "tstitch::load_torchscript: the stream: forward must take (x, t, text), got 2 arguments");
}

TEST_CASE("files that are not TorchScript are refused in one line") {
  const auto message = [](std::string const& path) {
    return message_of<std::runtime_error>([&] { load_torchscript(path); });
  };
  CHECK(message("/nowhere/model.pt") ==
        "tstitch::load_torchscript: '/nowhere/model.pt': must be a file that can be read, got none");
  CHECK_THAT(message(path_of("empty.pt", "")), ContainsSubstring("must be a TorchScript file, got an empty file"));
  CHECK_THAT(message(TSTITCH_TEST_DATA),
             ContainsSubstring("must be a TorchScript file, got an empty file or a folder"));
  CHECK_THAT(message(path_of("text.pt", "this is a text, and a long one, but no model\n")),
             ContainsSubstring("text.pt': must be a TorchScript file, got 'no zip archive, or one that is cut off'"));
  const std::string whole = saved(tiny(), network_metadata());
  for (std::size_t share = 1; share < 10; ++share) {
    const std::string text = message(path_of("truncated.pt", whole.substr(0, whole.size() * share / 10)));
    CHECK_THAT(text, ContainsSubstring("truncated.pt': must be a TorchScript file, got"));
    CHECK(text.find('\n') == std::string::npos);
  }
  CHECK_THAT(refusal("no model either, but long enough to be looked at by a zip reader, one would think"),
             ContainsSubstring("the stream: must be a TorchScript file"));
}

TEST_CASE("only real numbers are rounded to the type of the network") {
  torch::jit::Module module("counts");
  module.register_buffer("last", tstitch::detail::host_tensor({1}, at::kLong).fill_(999));
  module.register_buffer("mask", tstitch::detail::host_tensor({3, 1, 1}, at::kBool).fill_(true));
  module.register_buffer("turn", tstitch::detail::host_tensor({1}, at::kComplexFloat).fill_(c10::complex<float>(0, 1)));
  module.register_buffer("third", tstitch::detail::host_tensor({1}, at::kFloat).fill_(1 / 3.0));
  module.define(
      "def forward(self, x, t):\n"
      "  number = torch.imag(self.turn) * self.last\n"
      "  return torch.zeros_like(x).masked_fill(self.mask, 1.0).float() * number + self.third.float() * 3e4\n");
  const Network network = from_memory(saved(module, network_metadata()), {.dtype = at::kBFloat16});
  const at::Tensor x = tstitch::detail::host_tensor({1, 3, 8, 8}, at::kFloat).zero_();
  const at::Tensor output = network(x, tstitch::detail::to_device({7}, at::kCPU), {});
  CHECK(output.min().item<float>() == 999 + 3e4f * 0.333984375f);  // a third in bfloat16
  CHECK(output.max().item<float>() == output.min().item<float>());
}

TEST_CASE("a file with a damaged byte is refused or gives the same network, but never crashes") {
  const std::string whole = saved(tiny(), network_metadata());
  int refused = 0;
  for (std::size_t position = 0; position < whole.size(); position += 7) {
    std::string damaged = whole;
    damaged[position] = char(damaged[position] ^ 0x5a);
    try {
      from_memory(damaged);
    } catch (std::runtime_error const& error) {
      ++refused;
      INFO(position);
      REQUIRE(std::string(error.what()).starts_with("tstitch::"));
    }
  }
  CHECK(refused > 0);
}

TEST_CASE("metadata that makes no sense is refused with key, rule and value") {
  const auto message = [](std::string const& key, std::string const& value) {
    return refusal(saved(tiny(), with(key, value)));
  };
  CHECK(
      message("format", "2") ==
      "tstitch::read_network_info: the stream: tstitch/format must be 1, the format that this version reads, got '2'");
  CHECK(message("input_channels", "-") ==
        "tstitch::read_network_info: the stream: tstitch/input_channels is required, got nothing");
  CHECK(message("input_height", "tall") ==
        "tstitch::read_network_info: the stream: tstitch/input_height must be a number, got 'tall'");
  CHECK(message("input_width", "0") ==
        "tstitch::read_network_info: the stream: tstitch/input_width must be in [1, 65536], got 0");
  CHECK(message("prediction", "eps") ==
        "tstitch::read_network_info: the stream: tstitch/prediction must be one of epsilon, sample, v_prediction, "
        "flow, got "
        "'eps'");
  CHECK(message("num_train_timesteps", "99999999") ==
        "tstitch::read_network_info: the stream: tstitch/num_train_timesteps must be in [1, 1000000], got 99999999");
  CHECK(message("num_classes", "1000000000000") ==
        "tstitch::read_network_info: the stream: tstitch/num_classes must be in [0, 1000000], got 1000000000000");
  CHECK(message("null_class", "5") ==
        "tstitch::read_network_info: the stream: tstitch/null_class must be in [0, 0] or none, got 5");
  CHECK(message("class_names", "cat") ==
        "tstitch::read_network_info: the stream: tstitch/class_names must have one line for each of the 0 classes, got "
        "1 lines");
  CHECK(message("e4m3_inputs", "-1") ==
        "tstitch::read_network_info: the stream: tstitch/e4m3_inputs must be finite numbers of at least 0, got -1");
  CHECK(message("e4m3_inputs", "inf") ==
        "tstitch::read_network_info: the stream: tstitch/e4m3_inputs must be finite numbers of at least 0, got inf");
  CHECK(message("e4m3_inputs", "1") ==
        "tstitch::read_network_info: the stream: tstitch/e4m3_inputs must have one line for each of the 0 layers, got "
        "1 lines");
  CHECK_THAT(message("beta_end", "2"),
             ContainsSubstring("tstitch/noise_schedule must be a schedule that makes sense, got "
                               "tstitch::NoiseSchedule::from_betas: each beta must be inside (0, 1), got"));
  CHECK(message("num_classes", "10") ==
        "tstitch::load_torchscript: the stream: forward must take (x, t, labels), got 2 arguments");
}

TEST_CASE("numbers of metadata are in their ranges, whatever is multiplied by them") {
  const auto message = [](std::string const& key, std::string const& value) {
    return refusal(saved(tiny(), with(key, value)));
  };
  const std::string place = "tstitch::read_network_info: the stream: tstitch/";
  for (auto const& [key, range] : std::map<std::string, std::string>{{"latent_scale", "[0, 1000000]"},
                                                                     {"latent_shift", "[-1000000, 1000000]"},
                                                                     {"guidance_scale", "[0, 1000]"},
                                                                     {"mlp_ratio", "[0, 1000]"}}) {
    for (char const* const value : {"nan", "inf", "-inf", "1e300", "-1000001"}) {
      INFO(key << " " << value);
      CHECK_THAT(message(key, value), ContainsSubstring(place + key + " must be in " + range + ", got "));
    }
    CHECK(message(key, "0.5") == "nothing was thrown");
  }
  for (auto const& [key, range] : std::map<std::string, std::string>{{"width", "[0, 65536]"},
                                                                     {"depth", "[0, 1000]"},
                                                                     {"heads", "[0, 65536]"},
                                                                     {"patch_size", "[0, 65536]"},
                                                                     {"steps", "[1, 1000000]"},
                                                                     {"images_seen", "[0, 9223372036854775807]"}}) {
    CHECK(message(key, "-1") == place + key + " must be in " + range + ", got -1");
    CHECK_THAT(message(key, "9223372036854775808"), ContainsSubstring(key + " must be a number, got '92"));
  }
  CHECK(message("depth", "2305843009213693952") == place + "depth must be in [0, 1000], got 2305843009213693952");
  CHECK(message("steps", "0") == place + "steps must be in [1, 1000000], got 0");
  CHECK(message("steps", "1000001") == place + "steps must be in [1, 1000000], got 1000001");
  Metadata large = with("input_channels", "65536");
  large["input_height"] = large["input_width"] = "65536";
  CHECK(refusal(saved(tiny(), large)) ==
        place + "input_channels times height and width must be at most 4294967296, got 281474976710656");
  CHECK_THAT(message("conditions", "text float 4294967296 2"),
             ContainsSubstring("conditions must have at most 4294967296 elements an image, got 'text float 42"));
  CHECK_THAT(message("beta_end", "0.5"),
             ContainsSubstring("beta_end must leave 1e-12 of the variance of the signal, got "));
  for (char const* const value : {"nan", "inf", "-1"}) {
    CHECK_THAT(message("beta_end", value), ContainsSubstring("tstitch/noise_schedule must be a schedule that makes"));
    CHECK_THAT(message("beta_start", value), ContainsSubstring("tstitch/noise_schedule must be a schedule that makes"));
  }
}

TEST_CASE("text of metadata is what can be shown, and messages cut it") {
  const std::string place = "tstitch::read_network_info: the stream: tstitch/";
  for (std::string const key : {"name", "profile", "license", "training_data", "architecture", "conditions"}) {
    CHECK(refusal(saved(tiny(), with(key, "a\033[2Jb"))) ==
          place + key + " must be text without control characters, got 'a\\x1b[2Jb'");
  }
  Metadata classes = with("num_classes", "2");
  classes["class_names"] = "cat\n\033]0;title\007";
  CHECK(refusal(saved(tiny(), classes)) ==
        place + "class_names must be text without control characters, got '\\x1b]0;title\\x07'");
  classes["class_names"] = "cat\n" + std::string(5000, 'a');
  const std::string long_name = refusal(saved(tiny(), classes));
  CHECK_THAT(long_name, ContainsSubstring(place + "class_names must have at most 200 bytes a line, got 'aaa"));
  CHECK(long_name.size() < 500);
  CHECK(refusal(saved(tiny(), with("format", std::string(std::size_t(10) << 20, '7')))) ==
        place + "format must have at most 200 bytes, got 10485760");
  CHECK(refusal(saved(tiny(), with("prediction",
                                   "\x9b"
                                   "2J"))) ==
        place + "prediction must be one of epsilon, sample, v_prediction, flow, got '\\x9b2J'");
}

TEST_CASE("a file says how its makers sample") {
  CHECK(from_memory(saved(tiny(), network_metadata())).info().profile.empty());
  CHECK(from_memory(saved(tiny(), network_metadata())).info().steps == 0);
  Metadata metadata = with("profile", "diffusers_dpmpp");
  metadata["steps"] = "25";
  const NetworkInfo info = from_memory(saved(tiny(), metadata)).info();
  CHECK(info.profile == "diffusers_dpmpp");
  CHECK(info.steps == 25);
}

TEST_CASE("a module that cannot be frozen runs as it is, and diagnostics say so") {
  torch::jit::Module module = tiny();
  module.register_attribute("training", c10::BoolType::get(), true);  // which is refused by freezing
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, 8, 8}, at::kFloat);
  const auto ready = tstitch::detail::frozen(module, "'traced.pt'");
  CHECK(ready->forward({x, tstitch::detail::to_device({5, 5}, at::kCPU)}).toTensor().equal(x.mul(0.5)));
  const std::vector<std::string> said = diagnostics();
  CHECK(std::any_of(said.begin(), said.end(), [](std::string const& sentence) {
    return sentence.starts_with(
        "tstitch::load_torchscript: 'traced.pt' runs as it is, because it cannot be frozen: Freezing ");
  }));
}

TEST_CASE("a set of files that does not fit together is refused before weights are read") {
  Metadata other = network_metadata();
  other["name"] = "other";
  other["input_channels"] = "4";
  other["noise_schedule"] = "cosine";
  const std::string a = path_of("a.pt", saved(tiny(), network_metadata())), b = path_of("b.pt", saved(tiny(), other));
  CHECK(message_of<std::runtime_error>([&] {
          load_torchscript_networks({a, b});
        }) ==
        "tstitch::require_compatible: these networks cannot share a trajectory\n"
        "  input shape: network 0 ('tiny') has [3, 8, 8], network 1 ('other') has [4, 8, 8]\n"
        "  noise schedule: network 0 ('tiny') has linear(1000, 0.0001, 0.02), network 1 ('other') has cosine(1000)");
  CHECK(load_torchscript_networks({a, a}).size() == 2);
}

TEST_CASE("networks that load at the same time are those that load one by one") {
  const auto together = load_torchscript_networks({small_path, large_path, small_path});
  REQUIRE(together.size() == 3);
  const at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, 32, 32}, at::kFloat);
  const at::Tensor t = tstitch::detail::to_device({5, 500}, at::kCPU);
  const Condition condition{.labels = tstitch::detail::to_device({3, 10}, at::kCPU)};
  const c10::AutoGradMode no_gradients(false);
  for (std::size_t k = 0; k < 3; ++k) {
    const Network alone = load_torchscript(k == 1 ? large_path : small_path);
    CHECK(together[k].info().name == alone.info().name);
    CHECK(together[k](x, t, condition).equal(alone(x, t, condition)));
  }
}

TEST_CASE("of networks that load at the same time the first that fails is named") {
  const std::string bytes = saved(tiny("def forward(self, x):\n  return x\n"), network_metadata());
  const std::string good = path_of("good.pt", saved(tiny(), network_metadata())), first = path_of("first.pt", bytes),
                    second = path_of("second.pt", bytes);
  const auto message = [](std::vector<std::string> const& paths) {
    return message_of<std::runtime_error>([&] { load_torchscript_networks(paths); });
  };
  const auto names = [](std::string const& path) { return ContainsSubstring(path + "': forward must take (x, t)"); };
  CHECK_THAT(message({first, second}), names(first));
  CHECK_THAT(message({second, first}), names(second));
  CHECK_THAT(message({good, second, first}), names(second));
  CHECK_THAT(message({good, good, second}), names(second));
}

TEST_CASE("what is done at once is done in threads like this one") {
  const c10::AutoGradMode no_gradients(false);
  const auto threads = tstitch::at_once(at::kCPU, 3, [](std::size_t k) {
    return std::tuple(k, std::this_thread::get_id(), c10::GradMode::is_enabled());
  });
  REQUIRE(threads.size() == 3);
  for (std::size_t k = 0; k < 3; ++k) {
    CHECK(std::get<0>(threads[k]) == k);
    CHECK((std::get<1>(threads[k]) == std::this_thread::get_id()) == (k == 0));
    CHECK_FALSE(std::get<2>(threads[k]));
  }
  CHECK(tstitch::at_once(at::kCPU, 0, [](std::size_t k) { return k; }).empty());

  std::atomic<int> ended = 0;
  CHECK(message_of<std::runtime_error>([&] {
          tstitch::at_once(at::kCPU, 4, [&](std::size_t k) -> int {
            std::this_thread::sleep_for(std::chrono::milliseconds(20 * (4 - k)));
            ++ended;
            if (k > 0) throw std::runtime_error(std::to_string(k));
            return 0;
          });
        }) == "1");
  CHECK(ended == 4);
}

TEST_CASE("a device that is not there is refused") {
  const int count = at::detail::getCUDAHooks().hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  const at::Device missing(at::kCUDA, at::DeviceIndex(count));
  CHECK(message_of<std::runtime_error>([&] { load_torchscript(small_path, {.device = missing}); }) ==
        "tstitch::load_torchscript: device cuda:" + std::to_string(count) + " must exist, got a machine with " +
            std::to_string(count) + " CUDA devices");
  CHECK_THAT(message_of<std::runtime_error>([&] {
               load_torchscript_networks({small_path, small_path}, {.device = missing});
             }),
             ContainsSubstring("must exist, got a machine with"));
}

TEST_CASE("a picture of the bundled network depends on its seed only, bit for bit when batches are padded") {
  const std::vector<Network> networks{small_network(), small_network()};
  const auto check = [&](auto const& sampler) {
    const Request alone{.labels = {3}, .seed = 7, .guidance = {.scale = 2}, .batch_size = 3, .pad_batches = true};
    const at::Tensor padded = sampler.sample(networks, alone).images;
    Request single = alone;
    single.batch_size = 1;
    const at::Tensor unpadded = sampler.sample(networks, single).images;
    CHECK(padded.sub(unpadded).abs().max().template item<double>() < 1e-4);
    for (std::int64_t position : {0, 1, 2}) {
      Request many = alone;
      many.labels = {0, 1, 2};
      many.seeds = {100, 101, 102};
      many.labels[std::size_t(position)] = 3;
      many.seeds[std::size_t(position)] = 7;
      CHECK(sampler.sample(networks, many).images.narrow(0, position, 1).equal(padded));
    }
  };
  check(DDIM{small_network().noise_schedule(), Stitch{}, {.steps = 4}});
  check(DDPM{small_network().noise_schedule(), Stitch{}, {.steps = 4}});
}

TEST_CASE("a picture in a batch of 64 is the picture alone") {
  const std::vector<Network> networks{small_network()};
  const DDIM sampler{small_network().noise_schedule(), SingleNetwork{}, {.steps = 4}};
  Request many{.labels = std::vector<std::int64_t>(64, 1), .batch_size = 64, .pad_batches = true};
  for (std::uint64_t i = 0; i < 64; ++i) many.seeds.push_back(i == 41 ? 7 : 200 + i);
  Request alone{.labels = {1}, .seed = 7, .batch_size = 64, .pad_batches = true};
  const at::Tensor picture = sampler.sample(networks, many).images.narrow(0, 41, 1);
  CHECK(picture.equal(sampler.sample(networks, alone).images));
  alone.batch_size = 1;
  CHECK(picture.sub(sampler.sample(networks, alone).images).abs().max().item<double>() < 1e-4);
}

TEST_CASE("one loaded network serves several threads") {
  const DDIM sampler{small_network().noise_schedule(), SingleNetwork{}, {.steps = 2}};
  const auto draw = [&](std::uint64_t seed) {
    return sampler.sample({small_network()}, {.labels = {5}, .seed = seed}).images;
  };
  std::vector<at::Tensor> expected{draw(0), draw(1), draw(2)}, got(3);
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 3; ++i) threads.emplace_back([&, i] { got[i] = draw(i); });
  for (std::thread& thread : threads) thread.join();
  // Threads of torch's own pool may be shared out differently, which may round differently.
  for (std::size_t i = 0; i < 3; ++i) CHECK(got[i].sub(expected[i]).abs().max().item<double>() < 1e-4);
}

TEST_CASE("shapes are warmed up once, and again after a failure") {
  tstitch::detail::WarmUp warm_up;
  int runs = 0;
  const auto run = [&] { ++runs; };
  const auto of = [](std::vector<std::int64_t> const& x, std::int64_t tokens) {
    return std::vector<at::Tensor>{tstitch::detail::host_tensor(x, at::kFloat),
                                   tstitch::detail::host_tensor({tokens}, at::kFloat)};
  };
  CHECK_THROWS(warm_up.before(of({2, 3}, 7), [] { throw std::runtime_error("out of memory"); }));
  warm_up.before(of({2, 3}, 7), run);
  CHECK(runs == 2);
  warm_up.before(of({2, 3}, 7), run);
  CHECK(runs == 2);
  warm_up.before(of({4, 3}, 7), run);
  CHECK(runs == 4);
  warm_up.before(of({4, 3}, 8), run);  // another prompt
  CHECK(runs == 6);
}

TEST_CASE("files of flow-matching networks say so") {
  Metadata metadata = with("prediction", "flow");
  metadata["noise_schedule"] = "flow";
  const Network network = from_memory(saved(tiny(), metadata));
  CHECK(network.info().prediction_type == PredictionType::flow);
  CHECK(network.noise_schedule().is_flow());
  CHECK(network.noise_schedule().num_train_timesteps() == 1000);
}

TEST_CASE("networks are warmed up by one call where that settles them") {
  const auto calls = [](bool settles_at_once) {
    struct Counting {
      int* calls;
      bool settles_at_once;
      at::Tensor operator()(at::Tensor const& x, at::Tensor const&) const {
        ++*calls;
        return x;
      }
    };
    int count = 0;
    warm_up(Network(Counting{&count, settles_at_once}, {.channels = 1, .height = 2, .width = 2}), {2, 4});
    return count;
  };
  CHECK(calls(false) == 6);
  CHECK(calls(true) == 2);
}
