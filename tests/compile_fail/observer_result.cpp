/// @file
/// An observer that hopes to cancel with a bool.
#include <tstitch/method/ddim.hpp>

int main() {
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::SingleNetwork{}, {.steps = 10}};
  const auto enough = [](tstitch::StepReport const& report) {
#ifdef CORRECTED
    return report.step.index < 5 ? tstitch::Control::proceed : tstitch::Control::cancel;
#else
    return report.step.index < 5;
#endif
  };
  return sampler.sample({}, {}, enough).finished ? 0 : 1;
}
