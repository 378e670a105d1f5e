// A researcher's own routing and own update rule, tried on a network that knows the answer, so that no weights are
// needed.
#include <tstitch/method/ddim.hpp>

#include <cmath>
#include <iostream>

namespace {

// Heun's second-order method on dy/ds with y = x / alpha, s = sigma / alpha (Karras et al. 2022, Algorithm 1), which
// asks the network twice.
struct MyHeun {
  at::Tensor operator()(tstitch::StepInput const& in) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    const at::Tensor x_0 = in.predict().x_0;
    if (to.sigma == 0) return x_0;
    const double s = from.sigma / from.alpha, s_next = to.sigma / to.alpha;
    const at::Tensor y = in.x.div(from.alpha), slope = y.sub(x_0).div(s), euler = y.add(slope, s_next - s);
    const at::Tensor slope_next = euler.sub(in.denoise(euler.mul(to.alpha), {in.step.t_to, to}).x_0).div(s_next);
    return y.add(slope.add(slope_next), (s_next - s) / 2).mul(to.alpha);
  }
};

// The exact network for data N(0.3, 0.5^2): predicts the noise in x.
tstitch::Network exact_network(tstitch::NoiseSchedule const& noise) {
  return tstitch::Network(
      [noise](at::Tensor const& x, at::Tensor const& t) {
        const auto [alpha, sigma] = noise.at(t.select(0, 0).item<double>());
        const double variance = alpha * alpha * 0.25 + sigma * sigma;
        return x.sub(alpha * 0.3).mul(sigma / variance);
      },
      {.name = "exact", .channels = 1, .height = 64, .width = 64, .timestep_type = tstitch::TimestepType::float32});
}

}  // namespace

int main() {
  const auto noise = tstitch::NoiseSchedule::linear();

  // Routing is any callable on a Step; this one changes networks at equal signal and noise, and gives the last step
  // back.
  const auto by_noise = [](tstitch::Step const& step) -> std::size_t {
    return step.from.lambda() < 0 || step.index + 1 == step.count ? 0 : 1;
  };

  const tstitch::SamplingOptions options{.steps = 30, .spacing = tstitch::Spacing::karras()};
  const tstitch::Sampler heun{noise, by_noise, options, MyHeun{}};
  std::cout << heun.plan();  // a dry run: no network, no GPU

  const std::vector<tstitch::Network> networks{exact_network(noise), exact_network(noise)};
  const tstitch::Request request{.count = 16, .seed = 1};
  const auto report = [](char const* name, at::Tensor const& x) {
    std::cout << name << ": mean " << x.mean().item<float>() << ", deviation " << x.std().item<float>() << "\n";
  };
  report("Heun", heun.sample(networks, request).images);
  report("DDIM", tstitch::DDIM{noise, by_noise, options}.sample(networks, request).images);
  std::cout << "data: mean 0.3, deviation 0.5\n";
}
