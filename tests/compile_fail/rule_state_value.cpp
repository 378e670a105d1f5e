/// @file
/// A state that a run cannot begin with.
#include <tstitch/sampler/sampler.hpp>

struct Counting {
  struct State {
#ifndef CORRECTED
    explicit State(int first) : steps(first) {}
#endif
    int steps = 0;
  };
  at::Tensor operator()(tstitch::StepInput const& in, State& state) const {
    return in.x.div(++state.steps);
  }
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Counting{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
