/// @file
/// Options that the rule lists of itself only, so that another's cannot be set.
#include <tstitch/sampler/sampler.hpp>

struct Scaled {
  double scale = 1;

#ifdef CORRECTED
  static void options(auto& self, auto const& see) {
    see("scale", self.scale);
  }
#else
  void options(auto const& see) const {
    see("scale", scale);
  }
#endif
  std::string name() const {
    return tstitch::detail::name_with_options("Scaled", *this);
  }

  at::Tensor operator()(tstitch::StepInput const& in) const {
    return in.x.mul(scale);
  }
};

int main() {
  const tstitch::Sampler sampler{
      tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 10}, Scaled{}};
  return sampler.sample({}, {}).finished ? 0 : 1;
}
