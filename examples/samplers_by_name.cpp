// Samplers chosen at run time: `samplers_by_name unipc order=3`. Without arguments every sampler there is, with its
// options. Tried on a network that knows the answer, so that no weights are needed. Exit codes: 0 done, 2 bad
// arguments.
#include <tstitch/method/by_name.hpp>
#include <tstitch/plan/by_name.hpp>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>

namespace {

using namespace tstitch;

// The exact network for data N(0.3, 0.5^2): predicts the noise in x.
Network exact_network(NoiseSchedule const& noise) {
  return Network(
      [noise](at::Tensor const& x, at::Tensor const& t) {
        const NoiseLevel level = noise.at(t.select(0, 0).item<double>());
        const double variance = level.alpha * level.alpha * 0.25 + level.sigma * level.sigma;
        return x.sub(level.alpha * 0.3).mul(level.sigma / variance);
      },
      {.name = "exact", .channels = 1, .height = 64, .width = 64, .timestep_type = TimestepType::float32});
}

void draw(AnyUpdateRule const& rule) {
  const NoiseSchedule noise = NoiseSchedule::linear();
  const AnySampler sampler{noise, Stitch{.ratio = 0.4}, {.steps = 20, .spacing = spacing_by_name("karras")}, rule};
  const std::vector<Network> networks{exact_network(noise), exact_network(noise)};
  const at::Tensor x = sampler.sample(networks, {.count = 4, .seed = 1}).images;
  const std::vector<int> calls = sampler.plan().calls();
  std::printf("  %s: mean %.3f, deviation %.3f in %d + %d evaluations\n", sampler.plan().sampler.c_str(),
              x.mean().item<double>(), x.std().item<double>(), calls[0], calls[1]);
}

}  // namespace

int main(int count, char** words) try {
  if (count > 1) {
    OptionValues options;
    for (int i = 2; i < count; ++i) {
      const std::string word = words[i];
      const std::size_t equals = std::min(word.find('='), word.size());
      options.insert_or_assign(word.substr(0, equals), word.substr(std::min(equals + 1, word.size())));
    }
    draw(update_rule_by_name(words[1], options));
    return 0;
  }
  for (NamedRule const& named : update_rules()) {
    std::printf("%s, %s\n", named.name.c_str(), named.help.c_str());
    for (NamedOption const& option : named.options) {
      std::printf("    %s = %s\n", option.name.c_str(), option.usual.c_str());
    }
    if (named.name == "lcm") continue;  // for networks that were distilled for it
    draw(named.make({}));
  }
  std::printf("data: mean 0.3, deviation 0.5\n");
} catch (std::invalid_argument const& error) {
  std::cerr << "samplers_by_name: " << error.what() << "\n";
  return 2;
}
