// TorchScript files whose network can be asked in parts, and what it forecasts.

#include <tstitch/engine/dit.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/tstitch.hpp>

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

Network load(torch::jit::Module const& module) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : network_metadata()) files["tstitch/" + key] = value;
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
