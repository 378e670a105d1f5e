/// @file
/// A number of steps where the options belong.
#include <tstitch/method/ddim.hpp>

int main() {
#ifdef CORRECTED
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{}, {.steps = 20}};
#else
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{}, 20};
#endif
  return sampler.options().steps;
}
