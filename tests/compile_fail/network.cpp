/// @file
/// A network that takes its timestep as a number.
#include <tstitch/method/ddim.hpp>

#ifdef CORRECTED
using Time = at::Tensor const&;
#else
using Time = double;
#endif

int main() {
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::SingleNetwork{}, {.steps = 10}};
  const auto identity = [](at::Tensor const& x, Time) { return x; };
  return sampler.sample({identity}, {}).finished ? 0 : 1;
}
