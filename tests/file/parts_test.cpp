// TorchScript files whose network can be asked in parts, and what it forecasts.

#include <tstitch/engine/dit.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/method/by_name.hpp>
#include <tstitch/tstitch.hpp>

#include <ATen/TensorOperators.h>

#include <sstream>
#include <string>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

constexpr auto whole = R"(
def forward(self, x, t):
  embedded = self.forecast_embed(x, t)
  return self.forecast_head(embedded, self.forecast_blocks(embedded))
)";
constexpr auto embed = R"(
def forecast_embed(self, x, t) -> List[Tensor]:
  return [x * self.scale, t]
)";
constexpr auto blocks = R"(
def forecast_blocks(self, embedded: List[Tensor]):
  x, t = embedded
  return x.add_((t.to(x.dtype) / 500).view(-1, 1, 1, 1))
)";
constexpr auto head = R"(
def forecast_head(self, embedded: List[Tensor], feature):
  return feature * 0.75
)";

torch::jit::Module scripted(std::vector<std::string> const& methods) {
  torch::jit::Module module("parts");
  module.register_parameter("scale", detail::host_tensor({1}, at::kFloat).fill_(0.5), false);
  for (std::string const& method : methods) module.define(method);
  return module;
}

Network load(torch::jit::Module const& module, Metadata const& changes = {}) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : network_metadata(changes)) files["tstitch/" + key] = value;
  std::ostringstream stream;
  module.save(stream, files);
  std::istringstream back(stream.str());
  return load_torchscript(back);
}

std::string refusal(std::vector<std::string> const& methods) {
  return message_of<std::runtime_error>([&] { load(scripted(methods)); });
}

}  // namespace

TEST_CASE("a file in parts computes what it does whole, and forecasts what a line foretells") {
  const Network parts = load(scripted({embed, blocks, head, whole}));
  const Network plain =
      load(scripted({"def forward(self, x, t):\n"
                     "  return (x * self.scale + (t.to(x.dtype) / 500).view(-1, 1, 1, 1)) * 0.75\n"}));
  CHECK(parts.forecasts());
  CHECK_FALSE(plain.forecasts());
  const Request request{.count = 2, .seed = 3};
  const auto draw = [&](Network const& by, Forecast const& forecast) {
    const DDIM sampler{by.noise_schedule(), SingleNetwork{}, {.steps = 28, .forecast = forecast}};
    return sampler.sample({by}, request).images;
  };
  const at::Tensor expected = draw(plain, {});
  const double largest = expected.abs().max().item<double>();
  CHECK(draw(parts, {}).equal(expected));
  CHECK(draw(parts, ForecastEvery{.every = 1}).equal(expected));
  for (const int every : {2, 4}) {
    const at::Tensor forecast = draw(parts, ForecastEvery{.every = every});
    CHECK_FALSE(forecast.equal(expected));  // float32
    CHECK(forecast.sub(expected).abs().max().item<double>() < 1e-4 * largest);
  }
  CHECK(draw(parts, ForecastEvery{.order = 0}).sub(expected).abs().max().item<double>() > 1e-3 * largest);
}

TEST_CASE("a file says whether its feature itself is forecast") {
  // The blocks see nothing but t, and double what would be a residual.
  const std::vector<std::string> methods{
      embed,
      "def forecast_blocks(self, embedded: List[Tensor]):\n"
      "  x, t = embedded\n"
      "  return (t.to(x.dtype) / 500).view(-1, 1, 1, 1) + x * 2\n",
      "def forecast_head(self, embedded: List[Tensor], feature):\n  return feature + embedded[0] * 0.25\n", whole};
  const NoiseSchedule schedule = NoiseSchedule::linear(1000, 0.0001, 0.02);
  const at::Tensor first = noise({1, 2}, NoiseAddress::initial(), {3, 8, 8}, at::kFloat);
  const at::Tensor second = noise({3, 4}, NoiseAddress::initial(), {3, 8, 8}, at::kFloat);
  const at::Tensor t = detail::host_tensor({2}, at::kLong).fill_(500), later = t - 100;
  // Of a computed step at `first`, and a forecast at `second` that repeats what was kept.
  const auto forecast = [&](Metadata const& changes) {
    const Network network = load(scripted(methods), changes);
    REQUIRE(network.forecasts());
    Memory memory;
    const auto ask = [&](int index, at::Tensor const& x, at::Tensor const& at, StepForecast const& told) {
      const c10::AutoGradMode no_gradients(false);
      const Step step{.index = index, .count = 2, .t = 500, .from = schedule.at(500), .to = schedule.at(400)};
      return network(x, at, Condition{},
                     Evaluation{.timestep = 500, .step = &step, .memory = &memory, .forecast = &told});
    };
    CHECK(ask(0, first, t, {.keep = 1}).equal((1 + first) + first * 0.125));
    return ask(1, second, later, {.network = true, .conditional = {{0, 1}}});
  };
  const at::Tensor of_feature = (1 + first) + second * 0.125, of_residual = ((1 + first) - first / 2) + second * 0.625;
  CHECK(forecast({{"forecast", "feature"}}).equal(of_feature));
  const auto near = [](at::Tensor const& got, at::Tensor const& expected) {
    return got.sub(expected).abs().max().item<double>() < 1e-5;
  };
  CHECK(near(forecast({{"forecast", "residual"}}), of_residual));
  CHECK(forecast({}).equal(forecast({{"forecast", "residual"}})));
  CHECK_FALSE(near(of_feature, of_residual));
}

TEST_CASE("what a file says of its forecasts is checked") {
  const std::vector<std::string> parts{embed, blocks, head, whole};
  const auto got = [](std::vector<std::string> const& methods, std::string const& value) {
    return message_of<std::runtime_error>([&] { load(scripted(methods), {{"forecast", value}}); });
  };
  CHECK(got(parts, "feature") == "nothing was thrown");
  CHECK_THAT(got(parts, "Feature"),
             ContainsSubstring("tstitch/forecast must be one of residual, feature, got 'Feature'"));
  CHECK_THAT(got(parts, ""), ContainsSubstring("tstitch/forecast must be one of residual, feature, got ''"));
  const std::vector<std::string> plain{"def forward(self, x, t):\n  return x\n"};
  CHECK(got(plain, "residual") == "nothing was thrown");
  CHECK_THAT(got(plain, "feature"),
             ContainsSubstring("tstitch/forecast must be left out of files without forecast_embed, got 'feature'"));
}

TEST_CASE("a feature of another shape than the first tensor is forecast") {
  // As in U-Nets, whose deep feature may be wider.
  const std::vector<std::string> methods{
      embed, "def forecast_blocks(self, embedded: List[Tensor]):\n  return torch.cat([embedded[0], embedded[0]], 1)\n",
      "def forecast_head(self, embedded: List[Tensor], feature):\n  return feature[:, 3:] * 0.5 + embedded[0]\n",
      whole};
  const Network network = load(scripted(methods), {{"forecast", "feature"}});
  const auto draw = [&](AnyUpdateRule const& rule, Forecast const& forecast) {
    const AnySampler sampler{network.noise_schedule(), SingleNetwork{}, {.steps = 12, .forecast = forecast}, rule};
    return sampler.sample({network}, {.count = 2, .seed = 3}).images;
  };
  for (char const* const name : {"pndm", "ddim", "dpm-solver++"}) {
    INFO(name);
    const AnyUpdateRule rule = update_rule_by_name(name);
    const at::Tensor expected = draw(rule, {});
    CHECK(draw(rule, ForecastEvery{.every = 1}).equal(expected));
    const at::Tensor repeated = draw(rule, ForecastEvery{.every = 2, .order = 0});
    CHECK(repeated.isfinite().all().item<bool>());
    CHECK_FALSE(repeated.equal(expected));
  }
  CHECK_THAT(message_of<std::runtime_error>([&] {
               const Network wrong = load(scripted(methods));
               const DDIM sampler{wrong.noise_schedule(), SingleNetwork{}, {.forecast = ForecastEvery{}}};
               sampler.sample({wrong}, {.count = 2});
             }),
             ContainsSubstring("blocks must return [2, 3, 8, 8], got [2, 6, 8, 8]"));
}

TEST_CASE("files with some of the parts, or with other arguments, are refused") {
  CHECK(refusal({embed, blocks, head, whole}) == "nothing was thrown");
  CHECK_THAT(refusal({embed, "def forward(self, x, t):\n  return x\n"}),
             ContainsSubstring("must have all of forecast_embed, forecast_blocks and forecast_head, or none, got 1"));
  CHECK_THAT(refusal({"def forecast_embed(self, x) -> List[Tensor]:\n  return [x]\n", blocks, head,
                      "def forward(self, x, t):\n  return x\n"}),
             ContainsSubstring("forecast_embed must take 2 arguments, got 1"));
  CHECK_THAT(refusal({embed, blocks, "def forecast_head(self, embedded: List[Tensor]):\n  return embedded[0]\n",
                      "def forward(self, x, t):\n  return x\n"}),
             ContainsSubstring("forecast_head must take 2 arguments, got 1"));
  CHECK_THAT(refusal({"def forecast_embed(self, x, t):\n  return x\n", blocks, head,
                      "def forward(self, x, t):\n  return x\n"}),
             ContainsSubstring("forecast_embed must return List[Tensor], got Tensor"));
  CHECK_THAT(refusal({embed, "def forecast_blocks(self, embedded: List[Tensor]):\n  return embedded\n", head,
                      "def forward(self, x, t):\n  return x\n"}),
             ContainsSubstring("forecast_blocks must return Tensor, got Tensor[]"));
}

TEST_CASE("warming up asks for forecasts where it is told to, and where the network can forecast") {
  int blocks = 0, heads = 0;
  NetworkInfo info;
  info.shape = {1, 2, 2};
  const SplitNetwork parts{
      .embed = [](at::Tensor const& x, at::Tensor const&, Condition const&) { return std::vector{x}; },
      .blocks = [&](std::vector<at::Tensor> const& embedded) { return ++blocks, embedded[0].add(1); },
      .head = [&](std::vector<at::Tensor> const&, at::Tensor const& feature) { return ++heads, feature; }};
  const Network network(parts, info);
  warm_up(network, {2, 4}, {});
  CHECK(blocks == 6);
  CHECK(heads == 6);
  blocks = heads = 0;
  warm_up(network, {2, 4}, {}, true);
  CHECK(blocks == 12);
  CHECK(heads == 18);
  int calls = 0;
  const Network plain([&](at::Tensor const& x, at::Tensor const&) { return ++calls, x.clone(); }, info);
  warm_up(plain, {2}, {}, true);
  CHECK(calls == 3);
}
