/// @file
/// An update rule with the signature of another library.
#include <tstitch/sampler/sampler.hpp>

struct Halve {
#ifdef CORRECTED
  at::Tensor operator()(tstitch::StepInput const& in) const {
    return in.x.mul(0.5);
  }
#else
  at::Tensor operator()(at::Tensor const& x, double) const {
    return x.mul(0.5);
  }
#endif
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Halve{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
