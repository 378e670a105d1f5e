// Files of networks whose x has any rank, and sizes that only the request says.

#include <tstitch/load.hpp>
#include <tstitch/method/ddim.hpp>
#include <tstitch/method/dpm_solver.hpp>
#include <tstitch/study/fastest_batch.hpp>

#include <cmath>
#include <filesystem>
#include <functional>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

using Sizes = std::vector<std::int64_t>;

Metadata with(Metadata changes, std::string const& shape = "3 8 8") {
  return metadata_of_shape(shape, std::move(changes));
}

std::string saved(std::string const& forward, Metadata const& metadata) {
  torch::jit::Module module("open");
  module.define(forward);
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
  std::ostringstream stream;
  module.save(stream, files);
  return stream.str();
}

std::string written(std::string const& forward, Metadata const& metadata) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/open.pt";
  std::ofstream(path, std::ios::binary) << saved(forward, metadata);
  return path;
}

const std::string identity = "def forward(self, x, t):\n  return x\n";

Network from_memory(std::string const& bytes, TorchScriptOptions const& options = {}) {
  std::istringstream stream(bytes);
  return load_torchscript(stream, options);
}

/// What the metadata makes of it, or how it is refused.
std::string refusal(Metadata const& metadata) {
  return message_of<std::runtime_error>([&] { from_memory(saved(identity, metadata)); });
}

constexpr double slope = 0.5;

/// Predicts eps = slope x + label / 4, whatever the shape.
Network affine(std::string const& shape) {
  const std::string forward =
      "def forward(self, x, t, labels):\n"
      "  offset = (labels.to(x.dtype) * 0.25).view([x.size(0)] + [1] * (x.dim() - 1))\n"
      "  return x * 0.5 + offset\n";
  return load_network(written(forward, with({{"num_classes", "4"}, {"null_class", "4"}}, shape)), {.device = at::kCPU});
}

/// Where DDIM leads from `begin` under guidance, for that network.
at::Tensor expected_end(Plan const& plan, at::Tensor const& begin, double label, double scale) {
  const double offset = 1 + scale * (label / 4 - 1);  // the null class is 4
  double a = 1, b = 0;                                // x = a begin + b
  for (PlannedStep const& planned : plan.steps) {
    const NoiseLevel from = planned.step.from, to = planned.step.to;
    const double keep = to.alpha * (1 - from.sigma * slope) / from.alpha + to.sigma * slope;
    a *= keep;
    b = keep * b + offset * (to.sigma - to.alpha * from.sigma / from.alpha);
  }
  return begin.to(at::kDouble).mul(a).add(b);
}

}  // namespace

TEST_CASE(
    "a file of any rank, with sizes that the request says, draws what the closed form says and what the flat one "
    "does") {
  struct Case {
    char const* stated;
    Sizes shape;
  };
  at::Tensor flat;
  for (Case const& each : {Case{"48", {48}}, Case{"2 *", {2, 24}}, Case{"2 24", {2, 24}}, Case{"2 * *", {2, 4, 6}},
                           Case{"2 2 * *", {2, 2, 3, 4}}, Case{"2 * 3 4", {2, 2, 3, 4}}}) {
    INFO(each.stated);
    const Network network = affine(each.stated);
    CHECK(words::sizes_text(network.info().shape).size() ==
          std::string(each.stated).size() + 2 + each.shape.size() - 1);
    const Request request{.labels = {0, 1, 3}, .seed = 3, .guidance = {.scale = 2.5}, .shape = each.shape};
    const NoiseSchedule noise_schedule = NoiseSchedule::cosine();
    const DDIM sampler{noise_schedule, SingleNetwork{}, {.steps = 8, .thresholding = Thresholding::none()}};
    const at::Tensor end = sampler.sample({network}, request).images;
    Sizes rows = each.shape;
    rows.insert(rows.begin(), 3);
    REQUIRE(end.sizes() == at::IntArrayRef(rows));
    const at::Tensor begin = noise({3, 4, 5}, NoiseAddress::initial(), each.shape, at::kFloat);
    for (int i = 0; i < 3; ++i) {
      const double label = request.labels[std::size_t(i)];
      const at::Tensor expected = expected_end(sampler.plan(request.guidance), begin.select(0, i), label, 2.5);
      const double scale = expected.abs().max().item<double>();
      CHECK(end.select(0, i).sub(expected).abs().max().item<double>() < 1e-5 * scale);
    }
    const DPMSolver other{noise_schedule, SingleNetwork{}, {.steps = 5}, {.order = 3}};
    const at::Tensor both = at::Tensor(end).flatten(1).add(other.sample({network}, request).images.flatten(1));
    if (!flat.defined()) flat = both;
    CHECK(both.equal(flat));
  }
}

TEST_CASE("a request that contradicts a file, or says too little for it, is refused") {
  const DDIM sampler{NoiseSchedule::cosine(), SingleNetwork{}, {.steps = 2}};
  const auto message = [&](std::vector<Network> const& networks, Sizes const& shape) {
    return message_of<std::invalid_argument>([&] { sampler.sample(networks, {.labels = {1}, .shape = shape}); });
  };
  const Network open = affine("4 * *"), video = affine("4 * 16 16"), picture = affine("4 16 16");
  const std::string needed =
      "tstitch::Request: shape or initial_noise must say the sizes that the networks leave open, ";
  CHECK(message({open}, {}) == needed + "[4, *, *], got none");
  CHECK(message({video}, {}) == needed + "[4, *, 16, 16], got none");
  const std::string rule =
      "tstitch::Request: shape must be [C, ...] of what the networks state, with 1 to 2^34 elements";
  CHECK(message({open}, {4, 16}) == rule + ", got [4, 16]");
  CHECK(message({open}, {3, 16, 16}) == rule + ", got [3, 16, 16]");
  CHECK(message({open}, {4, 16, 0}) == rule + ", got [4, 16, 0]");
  CHECK(message({picture}, {4, 2, 16, 16}) == rule + ", got [4, 2, 16, 16]");
  CHECK(message({open, picture}, {4, 8, 8}) == rule + ", got [4, 8, 8]");  // whichever network says it
  CHECK(message({open}, {4, 6, 8}) == "nothing was thrown");
  CHECK(message({open, picture}, {}) == "nothing was thrown");
  CHECK(message({picture}, {}) == "nothing was thrown");
  CHECK(message_of<std::runtime_error>([&] {
          sampler.sample({open, video}, {.labels = {1}});
        }) ==
        "tstitch::require_compatible: these networks cannot share a trajectory\n"
        "  input shape: network 0 ('open') has [4, *, *], network 1 ('open') has [4, *, 16, 16]");
}

TEST_CASE("shapes that make no sense are refused with key, rule and value") {
  const std::string place = "tstitch::read_network_info: the stream: tstitch/input_shape ";
  const std::string rule = place + "must be 1 to 16 sizes, the number of channels and then numbers or *, got ";
  const auto message = [](std::string const& shape) { return refusal(metadata_of_shape(shape)); };
  for (char const* const shape : {"0", "0 8 8", "4 0 8", "4 -1 8", "-4 8 8", "* 8 8", "*",
                                  "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4 * * * * * * * * * * * * * * * *"}) {
    CHECK(message(shape) == rule + "'" + shape + "'");
  }
  for (auto const& [shape, word] : Metadata{{"", ""},
                                            {" ", ""},
                                            {"4  8", ""},
                                            {" 4 8", ""},
                                            {"4 8 ", ""},
                                            {"4 8 x", "x"},
                                            {"4 8.0", "8.0"},
                                            {"+4 8", "+4"},
                                            {"0x4 8", "0x4"},
                                            {"4x8x8", "4x8x8"},
                                            {"4,8,8", "4,8,8"},
                                            {"4 **", "**"},
                                            {"4 nan", "nan"},
                                            {"99999999999999999999 8", "99999999999999999999"}}) {
    CHECK(message(shape) == place + "must be a number, got '" + word + "'");
  }
  for (char const* const shape : {"4294967297", "65536 65536 2", "4294967296 4294967296 4294967296", "4 2147483648 * 9",
                                  "9223372036854775807 *"}) {
    CHECK(message(shape) == place + "must have at most 4294967296 elements an image, got '" + shape + "'");
  }
  CHECK(message("4\n8") == place + "must be text without control characters, got '4\\x0a8'");
  CHECK(message(std::string(201, '1')) == place + "must have at most 200 bytes, got 201");
  Metadata none = metadata_of_shape("4");
  none.erase("input_shape");
  CHECK(refusal(none) == place + "is required, got nothing");
  CHECK(message("4294967296") == "nothing was thrown");
  CHECK(message("4 * * * * * * * * * * * * * * *") == "nothing was thrown");
}

TEST_CASE("the keys of version 0.1 say the same as the shape, or are refused") {
  const auto info = [](Metadata const& metadata) { return from_memory(saved(identity, metadata)).info(); };
  const Metadata old{{"input_channels", "3"}, {"input_height", "8"}, {"input_width", "6"}};
  Metadata alone = with(old);
  alone.erase("input_shape");
  const std::vector<Metadata> files{alone, with(old, "3 8 6"), metadata_of_shape("3 8 6")};
  for (Metadata const& file : files) {
    const NetworkInfo found = info(file);
    CHECK(found.shape == Sizes{3, 8, 6});
    CHECK((found.channels == 3 && found.height == 8 && found.width == 6));
  }
  const NetworkInfo video = info(metadata_of_shape("4 * 16 24")), signal = info(metadata_of_shape("1 16000"));
  CHECK((video.channels == 4 && video.height == 16 && video.width == 24));
  CHECK((signal.channels == 1 && signal.height == 0 && signal.width == 0));
  const std::string place = "tstitch::read_network_info: the stream: tstitch/";
  for (auto const& [shape, said] :
       Metadata{{"4 8 6", "input_channels must be what tstitch/input_shape says, '4 8 6', got 3"},
                {"3 9 6", "input_height must be what tstitch/input_shape says, '3 9 6', got 8"},
                {"3 8 *", "input_width must be what tstitch/input_shape says, '3 8 *', got 6"},
                {"3 8", "input_channels must be what tstitch/input_shape says, '3 8', got 3"},
                {"3 2 8 6", "input_channels must be what tstitch/input_shape says, '3 2 8 6', got 3"}}) {
    CHECK(refusal(with(old, shape)) == place + said);
  }
  CHECK(refusal(with({{"input_height", "0"}})) == place + "input_height must be in [1, 65536], got 0");
}

TEST_CASE("warming up is told the sizes that a file leaves open, or refuses") {
  // Which shows what it was warmed up with.
  const std::string forward =
      "def forward(self, x, t, text):\n"
      "  assert x.size(2) == 7 and text.size(1) == 5, 'other sizes'\n"
      "  return x + text.sum()\n";
  const std::string path = written(forward, with({{"conditions", "text float * 2"}}, "3 *"));
  const auto refused = [&](std::vector<std::int64_t> const& rows, InputSizes const& sizes) {
    return message_of<std::invalid_argument>(
        [&] { load_network(path, {.device = at::kCPU, .warm_up_rows = rows, .warm_up_sizes = sizes}); });
  };
  const std::string x = "tstitch::load_network: the input sizes must give x of 'open' a shape of [3, *], got ",
                    text = "tstitch::load_network: the input sizes must give 'text' of 'open' sizes of [*, 2], got ";
  const ConditionInfo five{.name = "text", .shape = {5, 2}};
  CHECK(refused({}, {}) == "nothing was thrown");
  CHECK(refused({1, 4}, {.shape = {3, 7}, .conditions = {{.name = "other", .shape = {1}}, five}}) ==
        "nothing was thrown");
  CHECK(refused({1}, {}) == x + "none");
  CHECK(refused({1}, {.shape = {3, 0}, .conditions = {five}}) == x + "[3, *]");
  CHECK(refused({1}, {.shape = {3, -7}, .conditions = {five}}) == x + "[3, -7]");
  CHECK(refused({1}, {.shape = {4, 7}, .conditions = {five}}) == x + "[4, 7]");
  CHECK(refused({1}, {.shape = {3, 7, 7}, .conditions = {five}}) == x + "[3, 7, 7]");
  CHECK(refused({1}, {.shape = {3, 7}}) == text + "none");
  CHECK(refused({1}, {.shape = {3, 7}, .conditions = {{.name = "text", .shape = {0, 2}}}}) == text + "[*, 2]");
  CHECK(refused({1}, {.shape = {3, 7}, .conditions = {{.name = "text", .shape = {5, 3}}}}) == text + "[5, 3]");
  CHECK(refused({1}, {.shape = {3, 7}, .conditions = {{.name = "text", .shape = {-5, 2}}}}) == text + "[-5, 2]");
  // Before torch is asked for so much memory, and before products of sizes are beyond 64 bits.
  const std::string must = "tstitch::load_network: the input sizes must give ",
                    few = " of 'open' at most 2^34 elements an image, got ";
  for (const std::int64_t size : {(std::int64_t(1) << 33) + 1, std::int64_t(1) << 62}) {
    const std::string number = std::to_string(size);
    CHECK(refused({1}, {.shape = {3, size}, .conditions = {five}}) == must + "x" + few + "[3, " + number + "]");
    CHECK(refused({1}, {.shape = {3, 7}, .conditions = {{.name = "text", .shape = {size, 2}}}}) ==
          must + "'text'" + few + "[" + number + ", 2]");
  }
  // It does run them.
  for (InputSizes const& other : {InputSizes{.shape = {3, 8}, .conditions = {five}},
                                  InputSizes{.shape = {3, 7}, .conditions = {{.name = "text", .shape = {4, 2}}}}}) {
    CHECK_THAT(message_of<std::runtime_error>(
                   [&] { load_network(path, {.device = at::kCPU, .warm_up_rows = {1}, .warm_up_sizes = other}); }),
               ContainsSubstring("other sizes"));
  }
  const Network network = load_torchscript(path);
  CHECK(message_of<std::invalid_argument>([&] { load_torchscript(path, {.warm_up_rows = {1}}); }) ==
        "tstitch::load_torchscript: the input sizes must give x of 'open' a shape of [3, *], got none");
  CHECK(message_of<std::invalid_argument>([&] { warm_up(network, {1}); }) ==
        "tstitch::warm_up: the input sizes must give x of 'open' a shape of [3, *], got none");
  CHECK_NOTHROW(warm_up(network, {}));
  CHECK_NOTHROW(warm_up(network, {2}, {.shape = {3, 7}, .conditions = {five}}));
  const DDIM sampler{NoiseSchedule::cosine(), SingleNetwork{}, {.steps = 2}};
  CHECK(time_batches(sampler.plan(), {network}, 1, {.shape = {3, 7}, .conditions = {five}}).size() == 1);
}

TEST_CASE("the native engine takes pictures only") {
  const std::string path = written(identity, with({{"architecture", "dit"}}, "3 *"));
  CHECK(message_of<std::runtime_error>([&] { load_dit(path); }) ==
        "tstitch::load_dit: '" + path + "': must take x of [n, C, H, W], got [n, ...] of [3, *]");
  CHECK(load_network(path, {.device = at::kCPU}).info().shape == Sizes{3, 0});  // by TorchScript
}

TEST_CASE("positions of any number of patches run as far as those of training") {
  const at::Tensor own = tstitch::detail::position_table(4, 4, 4, 8),
                   wide = tstitch::detail::position_table(2, 8, 4, 8);
  for (std::int64_t row = 0; row < 2; ++row) {
    for (std::int64_t column = 0; column < 8; ++column) {
      const at::Tensor got = wide[0][row * 8 + column];
      for (std::int64_t k = 0; k < 8; ++k) {
        // Half of them of the column, half of the row; two sines, then two cosines, of place and of place / 100.
        const double place = (k < 4 ? double(column) / 2 : double(row) * 2) / (k % 2 ? 100 : 1);
        CHECK(std::abs(got[k].item<double>() - (k % 4 < 2 ? std::sin(place) : std::cos(place))) < 1e-6);
      }
      if (column % 2 == 0) CHECK(got.equal(own[0][row * 2 * 4 + column / 2]));
    }
  }
}

TEST_CASE("a program learns of several networks what they leave open between them") {
  const auto info = [](Sizes const& shape) { return NetworkInfo{.shape = shape}; };
  Sizes shape;
  take_shape(shape, NetworkInfo{});
  CHECK(shape.empty());
  take_shape(shape, info({4, 0, 0, 16}));
  CHECK(shape == Sizes{4, 0, 0, 16});
  take_shape(shape, info({4, 8, 0, 24}));
  CHECK(shape == Sizes{4, 8, 0, 16});
  take_shape(shape, NetworkInfo{.channels = 4, .height = 16, .width = 16});  // of another rank
  CHECK(shape == Sizes{4, 8, 0, 16});
  CHECK(words::sizes_text(shape) == "[4, 8, *, 16]");
  CHECK(words::sizes_text({}) == "[]");
  CHECK(sizes_fit(shape, {4, 8, 5, 16}));
  CHECK_FALSE(sizes_fit(shape, {4, 8, 5, 17}));
  CHECK_FALSE(sizes_fit(shape, {4, 8, 5}));
}
