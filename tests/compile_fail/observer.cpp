/// @file
/// An observer that wants the number of the step only.
#include <tstitch/method/ddim.hpp>

#include <cstdio>

int main() {
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::SingleNetwork{}, {.steps = 10}};
#ifdef CORRECTED
  const auto show = [](tstitch::StepReport const& report) { std::printf("%d\n", report.step.index); };
#else
  const auto show = [](int step) { std::printf("%d\n", step); };
#endif
  return sampler.sample({}, {}, show).finished ? 0 : 1;
}
