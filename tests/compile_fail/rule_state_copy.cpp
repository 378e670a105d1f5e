/// @file
/// A rule that changes a copy of its state.
#include <tstitch/sampler/sampler.hpp>

struct Counting {
  struct State {
    int steps = 0;
  };
#ifdef CORRECTED
  at::Tensor operator()(tstitch::StepInput const& in, State& state) const {
#else
  at::Tensor operator()(tstitch::StepInput const& in, State state) const {
#endif
      return in.x.div(++state.steps);
}
}
;

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Counting{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
