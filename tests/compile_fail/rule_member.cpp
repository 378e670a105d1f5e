/// @file
/// An optional member of an update rule that has the name and not the form.
#include <tstitch/sampler/sampler.hpp>

struct Multistep {
#ifdef CORRECTED
  int history() const {
    return 1;
  }
#else
  int history = 1;
#endif
  at::Tensor operator()(tstitch::StepInput const& in) const {
    return in.x.mul(0.5);
  }
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Multistep{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
