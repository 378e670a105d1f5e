// A schedule whose answer is no bool.
#include <tstitch/plan/forecast.hpp>

struct Schedule {
#ifdef CORRECTED
  bool operator()(tstitch::Step const& step, std::size_t) const { return step.index % 2 == 1; }
#else
  int operator()(tstitch::Step const& step, std::size_t) const { return step.index % 2; }
#endif
};

const tstitch::Forecast forecast = Schedule{};
