// PNDM: beside the peers' own code, its order, and what it costs.

#include <tstitch/peer/profile.hpp>

#include "euler_family.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule exact = NoiseSchedule::linear();
const Network eps = golden::network(exact);

/// diffusers keeps the last of its steps where the one before it ended already, at the level of t = 0 (its default
/// set_alpha_to_one=False), unless steps_offset moved it away.
std::vector<double> leading(int steps, int offset) {
  std::vector<double> list;
  for (int i = steps - 1; i >= (offset > 0 ? 0 : 1); --i) list.push_back(i * (1000 / steps) + offset);
  return list;
}

/// Holds PNDM to runs in which the peer recorded more states than there are steps.
/// @param keep state index -> whether it is one after a step of ours
/// @param make N, timesteps -> sampler
void check(std::string const& name, int offset, auto const& keep, auto const& make) {
  const golden::Case peer = golden::read(name);
  for (golden::Run const& run : peer.runs) {
    golden::Run kept{.steps = run.steps};
    const std::vector<double> timesteps = leading(run.steps, offset);
    for (std::size_t i = 0; i < run.states.size() && kept.states.size() < timesteps.size(); ++i) {
      if (keep(i)) kept.states.push_back(run.states[i]);
    }
    if (offset == 0) CHECK(run.states.back() == kept.states.back());
    const double worst = golden::difference(peer, kept, make(run.steps, timesteps), eps);
    INFO(name << ", " << run.steps << " steps: differs by " << worst);
    CHECK(worst <= 1e-5);
  }
}

auto on_list(PNDMUpdate const& rule) {
  return [rule](int, std::vector<double> const& timesteps) {
    return PNDM{
        golden::float32_linear(),
        SingleNetwork{},
        {.steps = int(timesteps.size()), .spacing = Spacing::list(timesteps), .final_sigma = FinalSigma::sigma_min},
        rule};
  };
}

}  // namespace

TEST_CASE("PLMS of diffusers and latent-diffusion") {
  // The first state is where Euler leads, before the step is taken again.
  const auto after_first = [](std::size_t i) { return i > 0; };
  check("diffusers_pndm_skip_prk", 0, after_first, on_list({}));
  check("diffusers_pndm_skip_prk_offset1", 1, after_first,
        [](int n, auto const&) { return make_sampler(profile::diffusers_pndm(exact, n), SingleNetwork{}); });
  // Its table is the exact one, each value rounded to float32.
  std::vector<double> values;
  for (double value : exact.alphas_cumprod()) values.push_back(double(float(value)));
  const NoiseSchedule rounded = NoiseSchedule::from_alphas_cumprod(values);
  golden::check("latent_diffusion_plms", eps, [&](int n) {
    std::vector<double> list;
    for (int t = 1; t < 1000; t += 1000 / n) list.insert(list.begin(), t);
    return PNDM{rounded,
                SingleNetwork{},
                {.steps = int(list.size()), .spacing = Spacing::list(list), .final_sigma = FinalSigma::sigma_min}};
  });
}

TEST_CASE("PNDM of diffusers, with Runge-Kutta steps first") {
  // Three steps of four evaluations.
  check(
      "diffusers_pndm", 0, [](std::size_t i) { return i >= 12 || i % 4 == 3; }, on_list({PNDMStart::runge_kutta}));
}

TEST_CASE("PNDM is of order 2") {
  for (PNDMStart start : {PNDMStart::improved_euler, PNDMStart::runge_kutta}) {
    const auto make = [&](NoiseSchedule const& noise, SamplingOptions const& options) {
      return PNDM{noise, SingleNetwork{}, options, {start}};
    };
    CHECK(euler_family::order_of(exact, make) > 1.85);
    CHECK(euler_family::order_of(NoiseSchedule::flow(), make) > 1.85);
  }
}

TEST_CASE("PNDM evaluates as often as the plan says") {
  int calls = 0;
  const Network counting([&](at::Tensor const& x, at::Tensor const& t) {
    ++calls;
    return eps(x, t, {});
  });
  const auto planned = [](Plan const& plan) {
    int sum = 0;
    for (int count : plan.calls()) sum += count;
    return sum;
  };
  for (const auto& [start, steps, expected] : {std::tuple{PNDMStart::improved_euler, 1, 1},
                                               {PNDMStart::improved_euler, 6, 7},
                                               {PNDMStart::runge_kutta, 1, 1},
                                               {PNDMStart::runge_kutta, 2, 5},
                                               {PNDMStart::runge_kutta, 6, 15}}) {
    // A switch of networks that drops the history does not start again.
    for (SwitchPolicy policy : {SwitchPolicy::keep, SwitchPolicy::reset, SwitchPolicy::re_evaluate}) {
      const PNDM sampler{NoiseSchedule::linear(),
                         Stitch{.ratio = 0.7},
                         {.steps = steps, .spacing = Spacing::trailing(), .at_switch = policy},
                         {start}};
      calls = 0;
      const at::Tensor x = sampler.sample({counting, counting}, {.initial_noise = golden::start()}).images;
      CHECK(x.isfinite().all().item<bool>());
      CHECK(calls == planned(sampler.plan()));
      if (policy != SwitchPolicy::re_evaluate) CHECK(calls == expected);
    }
  }
}

TEST_CASE("PNDM's Runge-Kutta steps ask halfway, at whole timesteps between whole ones") {
  std::vector<double> asked;
  const Network listening(
      [&](at::Tensor const& x, at::Tensor const& t) {
        asked.push_back(t.item<double>());
        return eps(x, t, {});
      },
      {.timestep_type = TimestepType::float32});
  const auto run = [&](std::vector<double> const& list) {
    asked.clear();
    PNDM{exact,
         SingleNetwork{},
         {.steps = int(list.size()), .spacing = Spacing::list(list), .final_sigma = FinalSigma::sigma_min},
         {PNDMStart::runge_kutta}}
        .sample({listening}, {.initial_noise = golden::start()});
    return asked;
  };
  CHECK(run({100, 75, 50, 25}) == std::vector<double>{100, 88, 88, 75, 75, 63, 63, 50, 50, 38, 38, 25, 25});
  CHECK(run({100.5, 75}) == std::vector<double>{100.5, 87.75, 87.75, 75, 75, 38, 38, 0});
}

TEST_CASE("PNDM begins at pure noise") {
  // The first step is DDIM's, and the second knows it.
  const NoiseSchedule zero_snr = exact.with_zero_terminal_snr();
  const Network v = golden::network(zero_snr, {.prediction_type = PredictionType::v_prediction});
  const SamplingOptions options{.steps = 10, .spacing = Spacing::trailing()};
  for (PNDMStart start : {PNDMStart::improved_euler, PNDMStart::runge_kutta}) {
    const PNDM sampler{zero_snr, SingleNetwork{}, options, {start}};
    CHECK(sampler.plan().steps[0].evaluations == 1);
    Trajectory ours = sampler.begin({v}, {.initial_noise = golden::start()});
    sampler.advance({v}, ours);
    const DDIM ddim{zero_snr, SingleNetwork{}, options};
    Trajectory theirs = ddim.begin({v}, {.initial_noise = golden::start()});
    ddim.advance({v}, theirs);
    CHECK(ours.x.equal(theirs.x));
    CHECK(sampler.sample({v}, {.initial_noise = golden::start()}).images.isfinite().all().item<bool>());
  }
}
