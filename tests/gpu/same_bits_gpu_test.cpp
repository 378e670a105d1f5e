// Bits on a GPU. Without one this prints why it is skipped and ends.
#include <tstitch/engine/cuda_graph.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/study/calibration.hpp>
#include <tstitch/tstitch.hpp>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../same_bits.hpp"
#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);

constexpr int mixes = 50;

}  // namespace

TEST_CASE("an image has the same bits on a GPU whatever is drawn before and beside it") {
  const std::vector<std::string> files{TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"};
  const TorchScriptOptions float16{.device = {at::kCUDA, 0}, .dtype = at::kHalf};
  const TorchScriptOptions float32{.device = {at::kCUDA, 0}};
  const auto in_8_bits = [&](std::string const& path) {
    return load_dit(path, float16, {.e4m3_inputs = largest_inputs(path, float32, {.steps = 2, .images = 2})});
  };
  const auto with_rows = [&](std::string const& path, std::int64_t rows) {
    NetworkInfo::Architecture const a = read_network_info(path).architecture;
    return load_dit(path, float16, {.modulation_bytes = rows * (6 * a.depth + 2) * a.width * 2});
  };
  // Ways that compute the same in the same steps share what is known of their images.
  using Load = std::function<Network(std::string const&)>;
  const std::vector<std::pair<std::string, std::vector<Load>>> ways{
      {"engine, float32", {[&](auto const& path) { return load_dit(path, float32); }}},
      {"engine, plain calls and graphs, any table",
       {[&](auto const& path) { return load_dit(path, float16); },
        [&](auto const& path) { return captured(load_dit(path, float16)); },
        [&](auto const& path) { return with_rows(path, 3); },
        [&](auto const& path) { return captured(with_rows(path, 19)); }}},
      {"engine, 8 bits",
       {[&](auto const& path) { return in_8_bits(path); },
        [&](auto const& path) { return captured(in_8_bits(path)); }}},
      {"TorchScript, graphs", {[&](auto const& path) { return captured(load_torchscript(path, float16)); }}}};
  for (auto const& [name, loads] : ways) {
    same_bits::Images images;
    std::mt19937 random(11);
    std::vector<std::vector<Network>> kept;
    for (Load const& load : loads) kept.push_back({load(files[0]), load(files[1])});
    int differ = 0;
    for (int mix = 0; mix < mixes; ++mix) {
      std::vector<Network> const& networks = kept[std::size_t(mix) % kept.size()];
      differ += images.draw(networks, random);
    }
    // And by networks that have seen nothing yet.
    for (int mix = 0; mix < 3; ++mix) differ += images.draw({loads[0](files[0]), loads[0](files[1])}, random);
    INFO(name);
    CHECK(differ == 0);
  }
}
