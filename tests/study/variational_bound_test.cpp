// The variational bound beside guided-diffusion's, and beside what is known in closed form.

#include <tstitch/study/variational_bound.hpp>

#include <sstream>

#include "../catch.hpp"
#include "../golden.hpp"
#include "../oracle.hpp"

using namespace tstitch;

namespace {

const NoiseSchedule noise_schedule = NoiseSchedule::linear();

template <class Schedule = SingleNetwork>
Plan plan_of(int steps, Schedule const& schedule = {}, NoiseSchedule const& noise = noise_schedule) {
  // The last t of an even grid from T to 0 is the clean picture in flow matching.
  return make_plan(noise, steps, noise.is_flow() ? Spacing::shifted() : Spacing::linspace(), FinalSigma::zero,
                   schedule);
}

at::Tensor tensor(at::IntArrayRef shape, std::vector<double> const& values) {
  const at::Tensor x = tstitch::detail::host_tensor(shape, at::kDouble);
  std::copy(values.begin(), values.end(), x.mutable_data_ptr<double>());
  return x;
}

/// Pictures [n, 1, 4, 4] of pseudo-random levels.
at::Tensor pictures(std::int64_t n) {
  const at::Tensor x = tstitch::detail::host_tensor({n, 1, 4, 4}, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    x.mutable_data_ptr<double>()[i] = double((i * 97 + 31) % 256) / 127.5 - 1;
  return x;
}

/// Predicts the same x_0 for every element.
Network constant(double x_0) {
  return Network([x_0](at::Tensor const& x, at::Tensor const&) { return x.new_full(x.sizes(), x_0); },
                 {.prediction_type = PredictionType::sample});
}

/// A network's x_0 at a point, moved by `off` where the given t is below `below`.
Network worse(Network const& network, double off, double below) {
  return Network(
      [network, off, below](at::Tensor const& x, at::Tensor const& t, Condition const& condition) {
        const at::Tensor out = network(x, t, condition);
        return t.select(0, 0).item<double>() < below ? out.add(off) : out;
      },
      network.info());
}

double largest_difference(at::Tensor const& a, at::Tensor const& b) {
  return a.sub(b).abs().max().item<double>();
}

double largest_ratio(at::Tensor const& a, at::Tensor const& b) {
  return a.div(b).sub_(1).abs_().max().item<double>();
}

double bits(double nats) {
  return nats / std::log(2.0);
}

}  // namespace

TEST_CASE("the bound is guided-diffusion's, term by term") {
  const at::Tensor images = tensor({2, 5, 1, 1}, {0, 255, 64, 190, 128, 77, 3, 252, 120, 255}).div_(127.5).sub_(1);
  const auto check = [&](std::string const& name, Variance variance, Thresholding const& thresholding) {
    const Network network = golden::network(noise_schedule, {.learned_variance = variance == Variance::learned_range});
    const auto json = nlohmann::json::parse(std::ifstream(TSTITCH_GOLDEN "/" + name + ".json")).at("runs");
    const std::vector<golden::Run> runs = golden::read(name).runs;
    for (std::size_t k = 0; k < runs.size(); ++k) {
      golden::Run const& run = runs[k];
      if (!run.error.empty()) continue;  // one step: its tables are too short
      const Plan plan = make_plan(noise_schedule, run.steps, Spacing::sections(), FinalSigma::zero, SingleNetwork{});
      const VariationalBound bound = variational_bound(plan, {network}, images,
                                                       {.variance = variance,
                                                        .decoder = BoundDecoder::pixels_tanh,
                                                        .thresholding = thresholding,
                                                        .noise_source = golden::noise_of(run)});
      for (int image = 0; image < 2; ++image) {
        const double prior = json[k].at("prior")[image], total = json[k].at("total")[image];
        CHECK(std::abs(bound.prior.const_data_ptr<double>()[image] - prior) < 1e-7);
        CHECK(std::abs(bound.of_plan().const_data_ptr<double>()[image] / total - 1) < 1e-5);
      }
      double worst = 0;
      for (int i = 0; i < run.steps; ++i) {
        for (int image = 0; image < 2; ++image) {
          const double theirs = run.states[i][image];
          worst = std::max(worst, std::abs(bound.terms.const_data_ptr<double>()[2 * i + image] / theirs - 1));
        }
      }
      INFO(name << ", " << run.steps << " steps: differs by " << worst);
      CHECK(worst < 1e-5);  // their tables are float32
    }
  };
  check("guided_diffusion_bound", Variance::learned_range, Thresholding::none());
  check("guided_diffusion_bound_clip", Variance::learned_range, Thresholding::clip());
  check("guided_diffusion_bound_fixed_small", Variance::fixed_small, Thresholding::none());
  check("guided_diffusion_bound_fixed_large", Variance::fixed_large, Thresholding::none());
}

TEST_CASE("the posterior keeps what x holds of picture and noise") {
  for (NoiseSchedule const& noise :
       {noise_schedule, NoiseSchedule::cosine(), NoiseSchedule::flow(), noise_schedule.with_zero_terminal_snr()}) {
    const Plan plan = plan_of(13, SingleNetwork{}, noise);
    for (PlannedStep const& planned : plan.steps) {
      const auto [from, to] = std::pair{planned.step.from, planned.step.to};
      const tstitch::detail::Posterior posterior(from, to);
      INFO(noise.name() << ", t = " << planned.step.t);
      CHECK(std::abs(posterior.of_x * from.alpha + posterior.of_x_0 - to.alpha) < 1e-14);
      CHECK(std::abs(std::pow(posterior.of_x * from.sigma, 2) + posterior.variance - to.sigma * to.sigma) < 1e-14);
    }
  }
}

TEST_CASE("with the posterior's variance a term is the gain in signal-to-noise ratio times half the squared error") {
  // Kingma et al. 2021, arXiv 2107.00630, Eq. 13.
  const at::Tensor images = pictures(2);
  for (NoiseSchedule const& noise :
       {noise_schedule, NoiseSchedule::cosine(), NoiseSchedule::flow(), noise_schedule.with_zero_terminal_snr()}) {
    const Plan plan = plan_of(9, SingleNetwork{}, noise);
    const VariationalBound bound = variational_bound(plan, {constant(0.2)}, images);
    const at::Tensor error = images.sub(0.2).square().flatten(1).mean(1);
    for (int i = 0; i + 1 < 9; ++i) {
      const auto [from, to] = std::pair{plan.steps[i].step.from, plan.steps[i].step.to};
      const double gain = std::exp(2 * to.lambda()) - std::exp(2 * from.lambda());
      const at::Tensor expected = error.mul(bits(gain / 2));
      INFO(noise.name() << ", step " << i);
      CHECK(largest_ratio(bound.terms.select(0, 0).select(0, i), expected) < 1e-9);
    }
  }
}

namespace {

constexpr double mean = 0.3, deviation = 0.5;

/// 65,536 draws from N(mean, deviation^2): the mean of their squares has a standard error of 0.55 %.
at::Tensor gaussian_data() {
  return noise({77}, NoiseAddress::initial(), {1, 256, 256}, at::kDouble).mul_(deviation).add_(mean);
}

/// The variance of x_0 of that data when x at this level is known.
double unknown(NoiseLevel level) {
  const double spread = deviation * deviation, noise = level.sigma * level.sigma;
  return spread * noise / (level.alpha * level.alpha * spread + noise);
}

/// The mean of KL(N(alpha x_0, sigma^2) || N(0, 1)) over that data.
double prior_bits(NoiseLevel level) {
  const double second_moment = level.alpha * level.alpha * (mean * mean + deviation * deviation);
  return bits((second_moment + level.sigma * level.sigma - 1 - 2 * std::log(level.sigma)) / 2);
}

}  // namespace

TEST_CASE("every term of the Gaussian oracle is its expected value") {
  const at::Tensor images = gaussian_data();
  for (NoiseSchedule const& noise : {noise_schedule, NoiseSchedule::cosine(), NoiseSchedule::flow()}) {
    const Network network = oracle::gaussian(noise, mean, deviation, {.prediction_type = PredictionType::sample});
    const Plan plan = plan_of(10, SingleNetwork{}, noise);
    const VariationalBound bound = variational_bound(plan, {network}, images, {.decoder = BoundDecoder::density});
    CHECK(std::abs(bound.prior.item<double>() - prior_bits(plan.steps[0].step.from)) < 1e-6);
    for (int i = 0; i < 10; ++i) {
      const auto [from, to] = std::pair{plan.steps[i].step.from, plan.steps[i].step.to};
      double squared = (std::exp(2 * to.lambda()) - std::exp(2 * from.lambda())) / 2 * unknown(from), rest = 0;
      if (i == 9) {
        Step const& before = plan.steps[8].step;
        const double variance = tstitch::detail::Posterior(before.from, before.to).variance;
        squared = unknown(from) / variance / 2;
        rest = std::log(2 * std::numbers::pi * variance) / 2;
      }
      INFO(noise.name() << ", step " << i);
      // Six standard errors.
      CHECK(std::abs(bound.terms.select(1, i).item<double>() - bits(squared + rest)) < 0.034 * bits(squared));
    }
  }
}

TEST_CASE("with the exact variance the bound is the entropy of the data, however few the steps are") {
  const at::Tensor images = gaussian_data();
  const double entropy = bits(std::log(2 * std::numbers::pi * std::numbers::e * deviation * deviation) / 2);
  for (NoiseSchedule const& noise : {noise_schedule, NoiseSchedule::cosine(), NoiseSchedule::flow()}) {
    for (int steps : {3, 10, 100}) {
      const Plan plan = plan_of(steps, SingleNetwork{}, noise);
      // Given x_from, x_to of Gaussian data is normal: the posterior's variance and what is unknown of its mean.
      const Network exact(
          [&](at::Tensor const& x, at::Tensor const& t) {
            std::size_t i = 0;
            while (plan.steps[i].step.t != t.select(0, 0).item<double>()) ++i;
            Step const& step = plan.steps[i].step;
            const tstitch::detail::Posterior posterior(step.from, step.to);
            const bool last = step.to == NoiseLevel::clean();
            Step const& before = plan.steps[last ? i - 1 : i].step;
            const double low = std::log(tstitch::detail::Posterior(before.from, before.to).variance);
            const double variance = posterior.variance + posterior.of_x_0 * posterior.of_x_0 * unknown(step.from);
            const double fraction = (std::log(variance) - low) / (std::log(posterior.beta) - low);
            const double of_x = step.from.alpha * unknown(step.from) / (step.from.sigma * step.from.sigma);
            const at::Tensor out = x.new_full({x.size(0), 2, x.size(2), x.size(3)}, 2 * fraction - 1);
            out.narrow(1, 0, 1).copy_(x.sub(step.from.alpha * mean).mul_(of_x).add_(mean));
            return out;
          },
          {.prediction_type = PredictionType::sample,
           .learned_variance = true,
           .timestep_type = TimestepType::float32});
      const VariationalBound bound = variational_bound(plan, {exact}, images, {.decoder = BoundDecoder::density});
      const double total = bound.of_plan().item<double>();
      INFO(noise.name() << ", " << steps << " steps: " << total << " bits, entropy " << entropy);
      CHECK(std::abs(total - entropy) < 0.03);
    }
  }
}

TEST_CASE("the decoder gives each level its probability, in the far tails too") {
  // One pixel a picture, all levels: the last term is the logarithm of a distribution.
  std::vector<double> levels;
  for (int k = 0; k < 256; ++k) levels.push_back(k / 127.5 - 1);
  const at::Tensor images = tensor({256, 1, 1, 1}, levels);
  const Plan plan = plan_of(50);
  Step const& before = plan.steps[48].step;
  const double deviation_0 = std::sqrt(tstitch::detail::Posterior(before.from, before.to).variance);
  for (double x_0 : {-1.2, -1.0, 0.1, 0.999}) {
    const auto last = [&](BoundDecoder decoder) {
      return variational_bound(plan, {constant(x_0)}, images, {.decoder = decoder}).terms.select(0, 0).select(0, 49);
    };
    const at::Tensor exact = last(BoundDecoder::pixels), tanh = last(BoundDecoder::pixels_tanh);
    double sum = 0;
    for (int k = 0; k < 256; ++k) {
      const double above = (levels[k] - x_0 + 1.0 / 255) / deviation_0,
                   below = (levels[k] - x_0 - 1.0 / 255) / deviation_0;
      const auto upper_tail = [](double z) { return std::erfc(z / std::sqrt(2.0)) / 2; };
      double probability = k == 0      ? upper_tail(-above)
                           : k == 255  ? upper_tail(below)
                           : below > 0 ? upper_tail(below) - upper_tail(above)
                                       : upper_tail(-above) - upper_tail(-below);
      sum += std::exp2(-exact.const_data_ptr<double>()[k]);
      probability = std::max(probability, std::numeric_limits<double>::min());
      INFO("level " << k << " under x_0 = " << x_0);
      CHECK(std::abs(exact.const_data_ptr<double>()[k] + std::log2(probability)) < 1e-9);
    }
    CHECK(std::abs(sum - 1) < 1e-12);
    CHECK(exact.max().item<double>() > 900);
    // The approximation: good in the middle, and nothing is rarer than 1e-12.
    CHECK(largest_difference(exact.neg().exp2(), tanh.neg().exp2()) < 1e-3);
    CHECK(std::abs(tanh.max().item<double>() + std::log2(1e-12)) < 1e-9);
  }
}

TEST_CASE("the ends of the learned range are the fixed variances") {
  const auto says = [](double v) {
    return Network(
        [v](at::Tensor const& x, at::Tensor const&) {
          const at::Tensor out = x.new_full({x.size(0), 2, 4, 4}, v);
          out.narrow(1, 0, 1).fill_(0.1);
          return out;
        },
        {.prediction_type = PredictionType::sample, .learned_variance = true});
  };
  const at::Tensor images = pictures(2);
  const auto terms = [&](Network const& network, Variance variance) {
    return variational_bound(plan_of(10), {network}, images, {.variance = variance}).terms;
  };
  const Variance automatic = Variance::automatic;
  const at::Tensor small_variance = terms(says(-1), automatic), large_variance = terms(says(1), automatic);
  CHECK(largest_difference(small_variance, terms(constant(0.1), automatic)) < 1e-10);
  CHECK(largest_difference(small_variance, terms(says(0.3), Variance::fixed_small)) < 1e-10);
  // Not in the last step, where the fixed large variance is the small one.
  const at::Tensor fixed_large = terms(constant(0.1), Variance::fixed_large);
  CHECK(largest_difference(large_variance.narrow(1, 0, 9), fixed_large.narrow(1, 0, 9)) < 1e-10);
  CHECK(largest_difference(small_variance.select(1, 9), fixed_large.select(1, 9)) < 1e-10);
  CHECK(largest_difference(large_variance.select(1, 9), fixed_large.select(1, 9)) > 1e-3);
}

TEST_CASE("two equal networks have equal shares, whatever they predict") {
  const at::Tensor images = pictures(3);
  const std::vector<Network> networks{
      oracle::gaussian(noise_schedule, 0.3, 0.5),
      oracle::gaussian(noise_schedule, 0.3, 0.5),
      oracle::gaussian(noise_schedule, 0.3, 0.5, {.prediction_type = PredictionType::v_prediction}),
  };
  const VariationalBound bound = variational_bound(plan_of(12, Stitch{.ratio = 0.5}), networks, images);
  CHECK(bound.terms.select(0, 0).equal(bound.terms.select(0, 1)));
  CHECK(largest_difference(bound.terms.select(0, 0), bound.terms.select(0, 2)) < 1e-8);
  CHECK(largest_difference(bound.of_plan(), bound.of_network(0)) < 1e-12);
  CHECK(bound.switch_after(1e-6) == 12);
}

TEST_CASE("the bound of a plan is what the routed networks add, and tells how far the first may go") {
  const at::Tensor images = pictures(8);
  const Network good = oracle::gaussian(noise_schedule, 0.0, 0.6);
  const Network weak = worse(good, 1, 400);
  const Plan plan = plan_of(20, Stitch{.ratio = 0.7});
  const VariationalBound bound = variational_bound(plan, {weak, good}, images);
  at::Tensor expected = bound.prior.clone();
  for (int i = 0; i < 20; ++i) expected.add_(bound.terms.select(0, i < 14 ? 0 : 1).select(0, i));
  CHECK(largest_difference(bound.of_plan(), expected) < 1e-12);
  for (int i = 0; i < 20; ++i) {
    INFO("step " << i);
    const at::Tensor weaker = bound.terms.select(0, 0).select(0, i), better = bound.terms.select(0, 1).select(0, i);
    CHECK(weaker.equal(better) == (plan.steps[i].step.t >= 400));
  }
  const std::vector<double> by_switch = bound.by_switch();
  REQUIRE(by_switch.size() == 21);
  CHECK(std::abs(by_switch.front() - bound.of_network(1).mean().item<double>()) < 1e-12);
  CHECK(std::abs(by_switch[14] - bound.of_plan().mean().item<double>()) < 1e-12);
  CHECK(std::abs(by_switch.back() - bound.of_network(0).mean().item<double>()) < 1e-12);
  CHECK(bound.switch_after(0) >= 12);  // t of steps 0 to 11 is above 400
  CHECK(bound.switch_after(1e9) == 20);
  const double at_17 = by_switch[17] - by_switch[0];
  CHECK(bound.switch_after(at_17) >= 17);
  for (int r = bound.switch_after(0.01) + 1; r <= 20; ++r) CHECK(by_switch[r] > by_switch[0] + 0.01);

  // Of more networks the first and the last count: the bound begins with 0.5 + 1 + 2 and ends with 0.5 + 5 + 7.
  const VariationalBound of_three{plan, tensor({3, 2, 1}, {5, 7, 100, 200, 1, 2}), tensor({1}, {0.5})};
  CHECK(of_three.by_switch() == std::vector<double>{3.5, 7.5, 12.5});

  std::ostringstream table;
  table << bound;
  INFO(table.str());
  CHECK(table.str().find("variational bound in bits per dimension, mean of 8 images\n") == 0);
  CHECK(table.str().find("network 0 may take the first " + std::to_string(bound.switch_after()) +
                         " steps: within 0.01 of network 1 alone\n") != std::string::npos);
  CHECK(std::ranges::count(table.str(), '*') == 20);
}

TEST_CASE("a picture's bound does not depend on the batch, and noise on the seed") {
  const at::Tensor images = pictures(5);
  const std::vector<Network> networks{oracle::gaussian(noise_schedule, 0.3, 0.5)};
  const VariationalBound whole = variational_bound(plan_of(6), networks, images);
  const VariationalBound parts = variational_bound(plan_of(6), networks, images, {.batch_size = 2});
  CHECK(largest_difference(whole.terms, parts.terms) < 1e-10);
  const VariationalBound fourth = variational_bound(plan_of(6), networks, images.narrow(0, 3, 1), {.seed = 3});
  CHECK(largest_difference(whole.terms.narrow(2, 3, 1), fourth.terms) < 1e-10);
  CHECK(largest_difference(whole.terms, variational_bound(plan_of(6), networks, images, {.seed = 1}).terms) > 1e-3);
  // Images in float32 are computed in float32.
  const VariationalBound rough = variational_bound(plan_of(6), networks, images.to(at::kFloat));
  CHECK(largest_ratio(rough.terms, whole.terms) < 1e-4);
}

TEST_CASE("what has no bound is refused") {
  const at::Tensor images = pictures(2);
  const Network network = constant(0);
  const auto refused = [&](Plan const& plan, std::vector<Network> const& networks, at::Tensor const& x,
                           VariationalBoundOptions const& options = {}) {
    return message_of<std::invalid_argument>([&] { variational_bound(plan, networks, x, options); });
  };
  CHECK(refused(plan_of(1), {network}, images) == "tstitch::variational_bound: at least 2 steps are needed, got 1");
  const std::string chain =
      "tstitch::variational_bound: each step must end where the next begins, and the last at the clean picture, got ";
  CHECK(refused(make_plan(noise_schedule, 5, Spacing::trailing(), FinalSigma::sigma_min, SingleNetwork{}), {network},
                images) == chain + "sigma = 0.01 after step 4");
  CHECK(refused(make_plan(noise_schedule, 13, Spacing::trailing(), FinalSigma::zero, SingleNetwork{}, {},
                          PreviousTimestep::by_stride),
                {network}, images)
            .starts_with(chain));
  CHECK(refused(plan_of(5, Stitch{.ratio = 0.5}), {network}, images) ==
        "tstitch::variational_bound: step 2 goes to network 1, so at least 2 networks are needed, got 1");
  CHECK(refused(plan_of(5), {network}, images, {.variance = Variance::learned_range}).starts_with("tstitch::DDPM: "));
  CHECK(refused(plan_of(5, SingleNetwork{}, NoiseSchedule::scaled_linear()), {oracle::gaussian(noise_schedule, 0, 1)},
                images) ==
        "tstitch::variational_bound: the plan must be of the noise schedule that the networks were trained with "
        "(linear(1000, 0.0001, 0.02) for network 0 ('gaussian')), got alpha = 0.06826491422 at t = 999");
  const NoiseSchedule flow = NoiseSchedule::flow();
  CHECK(refused(plan_of(5, SingleNetwork{}, flow), {oracle::gaussian(flow, 0, 1)}, images) ==
        "tstitch::variational_bound: a plan that begins at pure noise (alpha = 0) needs networks that predict x_0 or a "
        "velocity, got network 0 ('gaussian'), which predicts epsilon");
  CHECK(refused(plan_of(5), {network}, images.view({2, 16})) ==
        "tstitch::variational_bound: images must be [n, C, H, W], got [2, 16]");
  CHECK(refused(plan_of(5), {network}, images.to(at::kHalf)) ==
        "tstitch::variational_bound: images must be float32 or float64, got Half");
  const std::string levels =
      "tstitch::variational_bound: images must hold the 256 levels k / 127.5 - 1; other data needs "
      "BoundDecoder::density, "
      "got ";
  CHECK(refused(plan_of(5), {network}, images.add(0.5 / 127.5)).starts_with(levels));
  CHECK(refused(plan_of(5), {network}, images.add(1).mul(127.5)).starts_with(levels));
  CHECK(refused(plan_of(5), {network}, images.mul(std::numeric_limits<double>::quiet_NaN())).starts_with(levels));
  CHECK(refused(plan_of(5), {network}, images, {.batch_size = -1}) ==
        "tstitch::variational_bound: batch_size must not be negative, got -1");
  CHECK(refused(plan_of(5), {network}, images, {.labels = {1, 2}}) ==
        "tstitch::variational_bound: labels: these networks need 0, got 2");
  const Network classes = Network([](at::Tensor const& x, at::Tensor const&) { return x; }, {.num_classes = 3});
  CHECK(refused(plan_of(5), {classes}, images, {.labels = {1}}) ==
        "tstitch::variational_bound: labels: these networks need 2, got 1");
  CHECK(refused(plan_of(5), {classes}, images, {.labels = {1, 3}}) ==
        "tstitch::variational_bound: labels must be in [0, 2], got 3");
  CHECK(message_of<std::invalid_argument>([&] { variational_bound(plan_of(5), {network}, images).switch_after(-1); }) ==
        "tstitch::VariationalBound::switch_after: tolerance must not be negative, got -1");
}
