
// Behind the old paths of every header that has moved: a program as version 0.1 had it.
int main() {
  const auto same = [](at::Tensor const& x, at::Tensor const&) { return x.mul(0.5); };
  const std::vector<tstitch::Network> networks{tstitch::Network(same), tstitch::Network(same)};
  const tstitch::DDIM sampler{tstitch::NoiseSchedule::linear(), tstitch::Stitch{.ratio = 0.4}, {.steps = 4}};
  const at::Tensor noise = tstitch::noise({1}, tstitch::NoiseAddress::initial(), {1, 2, 2}, at::kFloat);
  return sampler.sample(networks, {.initial_noise = noise}).finished ? 0 : 1;
}
