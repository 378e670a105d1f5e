/// @file
/// An order where the update rule's own options belong.
#include <tstitch/method/dpm_solver.hpp>

int main() {
  const tstitch::SamplingOptions options{.steps = 20};
#ifdef CORRECTED
  const tstitch::DPMSolver sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{}, options, {.order = 3}};
#else
  const tstitch::DPMSolver sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{}, options, 3};
#endif
  return sampler.rule().order;
}
