// What a network says that is no number is found in the result, whatever clips or weighs it on the way.

#include <tstitch/tstitch.hpp>

#include <limits>
#include <memory>
#include <string>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule schedule = NoiseSchedule::linear();

/// Where a network says what is no number.
struct Fault {
  double value;
  int call = -1;  ///< -1: always
  bool one_element = false;
  int half = 0;  ///< of guidance: the rows with the condition, or 1 without
  bool in_variance = false;
};

/// A network that leaves x out of what it says, so that nothing but its faults is in it.
Network faulty(Fault const& fault, NetworkInfo info) {
  info.name = "faulty";
  info.channels = 2;
  info.height = info.width = 4;
  info.num_classes = 1;
  info.null_class = 1;
  const bool learned = info.learned_variance;
  return Network(
      [fault, learned, calls = std::make_shared<int>()](at::Tensor const& x, at::Tensor const&, Condition const&) {
        at::Tensor out = x.new_zeros({x.size(0), learned ? 4 : 2, 4, 4}).add(0.1);
        if (fault.call >= 0 && (*calls)++ != fault.call) return out;
        at::Tensor part = out.narrow(0, fault.half ? x.size(0) / 2 : 0, x.size(0) > 1 ? x.size(0) / 2 : 1)
                              .narrow(1, fault.in_variance ? 2 : 0, 2);
        if (fault.one_element) part = part.select(0, 0).select(0, 1).select(0, 2).narrow(0, 3, 1);
        part.fill_(fault.value);
        return out;
      },
      std::move(info));
}

template <class Make>
void every_sampler(Make check) {
  const SingleNetwork one;
  const auto options = [](Thresholding thresholding) {
    return SamplingOptions{
        .steps = 6, .spacing = Spacing::leading(0, {.include_last = false}), .thresholding = thresholding};
  };
  for (Thresholding const& thresholding :
       {Thresholding::none(), Thresholding::clip(), Thresholding::dynamic(0.9, 1, 2)}) {
    const SamplingOptions o = options(thresholding);
    check("DDIM", DDIM{schedule, one, o});
    check("DDIM, eta 1", DDIM{schedule, one, o, {.eta = 1, .eps_of_thresholded = false}});
    check("DDPM", DDPM{schedule, one, o});
    check("DPMSolver 3", DPMSolver{schedule, one, o, {.order = 3}});
    check("DPMSolver SDE", DPMSolver{schedule, one, o, {.eta = 1}});
    check("DPMSolver noise", DPMSolver{schedule, one, o, {.algorithm_type = AlgorithmType::dpmsolver}});
    check("DEIS", DEIS{schedule, one, o});
    check("UniPC", UniPC{schedule, one, o, {.order = 3}});
    check("LMS", LMS{schedule, one, o});
    check("PNDM", PNDM{schedule, one, o});
    check("Euler", Euler{schedule, one, o});
    check("EulerAncestral", EulerAncestral{schedule, one, o});
    check("Heun", Heun{schedule, one, o});
    check("DPM2", DPM2{schedule, one, o, {.eta = 0.5}});
    check("Singlestep 3", DPMSolverSinglestep{schedule, one, o, {.order = 3}});
    check("2S ancestral", DPMSolver2SAncestral{schedule, one, o});
    check("DPMSolverSDE", DPMSolverSDE{schedule, one, o});
    check("LCM", LCM{schedule, one, o});
  }
}

}  // namespace

TEST_CASE("every sampler refuses what its network says that is no number") {
  for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
    for (const PredictionType type : {PredictionType::epsilon, PredictionType::sample}) {
      for (const int call : {-1, 0, 1, 2, 3, 5}) {
        for (const double guidance : {1.0, 3.0}) {
          for (const int half : {0, 1}) {
            if (half && guidance == 1) continue;
            const Fault fault{value, call, call >= 0, half};
            every_sampler([&](char const* name, auto const& sampler) {
              INFO(name << ", value " << value << ", call " << call << ", type " << int(type) << ", guidance "
                        << guidance << ", half " << half);
              const std::string message = message_of<std::runtime_error>([&] {
                sampler.sample({faulty(fault, {.prediction_type = type})},
                               {.labels = {0}, .guidance = {.scale = guidance}});
              });
              CHECK_THAT(message, ContainsSubstring("values must be finite numbers"));
              // A network that fails at one call alone does not fail again when the run is repeated.
              if (call < 0) CHECK_THAT(message, ContainsSubstring("by network 0 ('faulty')"));
            });
          }
        }
      }
    }
  }
}

TEST_CASE("a learned variance that is no number is refused where it is used") {
  for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
    const DDPM sampler{schedule, SingleNetwork{}, {.steps = 4}};
    CHECK_THAT(message_of<std::runtime_error>([&] {
                 sampler.sample({faulty({value, -1, true, 0, true}, {.learned_variance = true})}, {.labels = {0}});
               }),
               ContainsSubstring("at step 0 (t = 999) by network 0 ('faulty')"));
  }
}

TEST_CASE("clipping changes no bit of what is finite") {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    at::Tensor x = noise({1, 2}, NoiseAddress::initial(), {3, 20, 20}, type).mul(2);
    x.narrow(3, 0, 1).fill_(-0.0);
    const at::Tensor clipped = Thresholding::clip(0.7)(x), expected = x.clamp(-0.7, 0.7);
    CHECK(clipped.equal(expected));
    CHECK(clipped.reciprocal().equal(expected.reciprocal()));  // which tells zeros apart
    CHECK(Thresholding::clip(0.7)(x.transpose(2, 3)).equal(expected.transpose(2, 3)));
    for (const double value : {double(INFINITY), -double(INFINITY), double(NAN)}) {
      at::Tensor broken = x.clone();
      broken.select(0, 1).select(0, 2).narrow(0, 19, 1).fill_(value);
      const at::Tensor kept = broken.isfinite();
      for (Thresholding const& thresholding : {Thresholding::clip(0.7), Thresholding::dynamic(0.9, 1, 2)}) {
        CHECK(thresholding(broken).isfinite().logical_or(kept).equal(kept));
        CHECK_FALSE(thresholding(broken).isfinite().all().item<bool>());
      }
    }
  }
}
