/// @file
/// A check whose answer nobody would read.
#include <tstitch/sampler/sampler.hpp>

#include <stdexcept>

struct Scaled {
  double scale = 1;

#ifdef CORRECTED
  void validate() const {
    if (!(scale > 0)) throw std::invalid_argument("Scaled: scale must be above 0");
  }
#else
  bool validate() const {
    return scale > 0;
  }
#endif
  at::Tensor operator()(tstitch::StepInput const& in) const {
    return in.x.mul(scale);
  }
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Scaled{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
