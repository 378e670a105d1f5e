/// @file
/// A rule whose State lists its members in a form that files cannot use.
#include <tstitch/sampler/sampler.hpp>

struct Counting {
  struct State {
    int steps = 0;
#ifdef CORRECTED
    static void members(auto& self, auto const& see) {
      see("steps", self.steps);
    }
#else
    int members() const {
      return 1;
    }
#endif
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
