// A member that has the name and not the form.
#include <tstitch/plan/forecast.hpp>

struct Schedule {
#ifdef CORRECTED
  int order = 2;
#else
  double order = 2;
#endif
  bool operator()(tstitch::Step const& step, std::size_t) const { return step.index % 2 == 1; }
};

const tstitch::Forecast forecast = Schedule{};
