// Two networks of your own on one trajectory. They are functions here, and know the answer: a picture of class k is k /
// 1000 all over.
#include <ATen/ATen.h>
#include <tstitch/method/ddim.hpp>

#include <iostream>

const auto noise_schedule = tstitch::NoiseSchedule::linear();

// The place of your model: x [n, 4, 32, 32], t and labels [n]. Returns the noise in x.
at::Tensor my_model(at::Tensor const& x, at::Tensor const& t, at::Tensor const& labels) {
  const auto [alpha, sigma] = noise_schedule.at(t[0].item<double>());
  const at::Tensor picture = labels.view({-1, 1, 1, 1}) / 1000.0;
  return (x - alpha * picture) / sigma;
}

tstitch::Network own_network(std::string const& name) {
  return tstitch::Network(
      [](at::Tensor const& x, at::Tensor const& t, tstitch::Condition const& c) { return my_model(x, t, c.labels); },
      {.name = name, .channels = 4, .height = 32, .width = 32, .num_classes = 1000, .null_class = 1000});
}

int main() {
  const std::vector<tstitch::Network> networks{own_network("small"), own_network("large")};
  const tstitch::DDIM sampler{noise_schedule, tstitch::Stitch{.ratio = 0.4}, {.steps = 5}};
  const auto samples = sampler.sample(networks, {.labels = {207, 360}, .guidance = {.scale = 1.0}});
  std::cout << samples.images.sizes() << ": " << samples.images.mean({1, 2, 3}) << "\n";
}
