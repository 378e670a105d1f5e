/// @file
/// A rule that keeps state and does not take it.
#include <tstitch/sampler/sampler.hpp>

struct Counting {
  struct State {
    int steps = 0;
  };
#ifdef CORRECTED
  at::Tensor operator()(tstitch::StepInput const& in, State& state) const {
    return in.x.div(++state.steps);
  }
#else
  at::Tensor operator()(tstitch::StepInput const& in) const {
    return in.x;
  }
#endif
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Counting{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
