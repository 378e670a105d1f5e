/// @file
/// A model schedule that changes itself when it is asked.
#include <tstitch/method/ddim.hpp>

struct Alternating {
  std::size_t next = 0;

#ifdef CORRECTED
  std::size_t operator()(tstitch::Step const& step) const {
    return std::size_t(step.index) % 2;
  }
#else
  std::size_t operator()(tstitch::Step const&) {
    return next++ % 2;
  }
#endif
};

int main() {
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), Alternating{}, {.steps = 10}};
  return sampler.plan().calls()[0] == 5 ? 0 : 1;
}
