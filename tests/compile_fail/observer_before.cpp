/// @file
/// An observer whose hook before a step has another form.
#include <tstitch/sampler/observer.hpp>

struct Watch {
#ifdef CORRECTED
  void before(tstitch::StepBegin const&) {}
#else
  void before(int) {}
#endif
  void operator()(tstitch::StepReport const&) {}
};

int main() {
  return tstitch::Observer(Watch{}) ? 0 : 1;
}
