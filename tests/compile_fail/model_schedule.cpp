/// @file
/// A model schedule that names a network instead of giving its index.
#include <tstitch/method/ddim.hpp>

#include <string>

#ifdef CORRECTED
std::size_t which(bool early) {
  return early ? 0 : 1;
}
#else
std::string which(bool early) {
  return early ? "small" : "large";
}
#endif

int main() {
  const auto by_half = [](tstitch::Step const& step) { return which(2 * step.index < step.count); };
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), by_half, {.steps = 10}};
  return sampler.plan().calls()[0] == 5 ? 0 : 1;
}
