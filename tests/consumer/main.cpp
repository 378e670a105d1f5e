/// @file
/// A user's first program, without files: all data are one known picture, so the best network is a formula.

#include <tstitch/method/ddim.hpp>

#include <cstdio>
#include <vector>

int main() {
  const auto noise = tstitch::NoiseSchedule::linear();
  constexpr double pixel = 0.25;  // of the one picture, everywhere
  const auto predict_noise = [noise](at::Tensor const& x, at::Tensor const& t) {
    const tstitch::NoiseLevel level = noise.at(t.select(0, 0).item<double>());
    return x.sub(pixel * level.alpha).div(level.sigma);
  };
  const tstitch::NetworkInfo info{.channels = 3, .height = 8, .width = 8};
  const std::vector<tstitch::Network> networks{{predict_noise, info}, {predict_noise, info}};

  const tstitch::DDIM sampler{noise, tstitch::Stitch{.ratio = 0.4}, {.steps = 10}};
  const at::Tensor images = sampler.sample(networks, {.count = 2, .seed = 7}).images;

  const double error = images.sub(pixel).abs().max().item<double>();
  const std::vector<int> calls = sampler.plan().calls();
  std::printf("%d steps by one network, %d by the other, off by %.1e\n", calls[0], calls[1], error);
  return calls[0] == 4 && calls[1] == 6 && error < 1e-4 ? 0 : 1;
}
