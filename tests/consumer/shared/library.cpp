/// @file
/// One of two shared libraries that each have a copy of the headers: compiled with LIBRARY=one and LIBRARY=two.
#include <tstitch/method/ddim.hpp>
#include <tstitch/output/image.hpp>

#include <string>

#define JOINED(a, b) a##b
#define NAME(prefix, library) JOINED(prefix, library)

/// A picture as the bytes of a file.
extern "C" int NAME(draw_, LIBRARY)(std::string& png) {
  const auto noise = tstitch::NoiseSchedule::linear();
  const auto predict_noise = [noise](at::Tensor const& x, at::Tensor const& t) {
    const tstitch::NoiseLevel level = noise.at(t.select(0, 0).item<double>());
    return x.sub(0.25 * level.alpha).div(level.sigma);
  };
  const tstitch::NetworkInfo info{.channels = 3, .height = 8, .width = 8};
  const tstitch::DDIM sampler{noise, tstitch::SingleNetwork{}, {.steps = 4}};
  const at::Tensor image = sampler.sample({{predict_noise, info}}, {.seed = 7}).images;
  png = tstitch::encode_png(tstitch::to_pictures(image)[0]);
  return image.sub(0.25).abs().max().item<double>() < 1e-4 ? 0 : 1;
}
