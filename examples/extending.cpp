// What a program may add to the library without a change in it: a sampler, a routing rule, a network of its own code
// and a kind of file for it, which load_networks then reads. docs/extending.md says what each must be.
#include <tstitch/load.hpp>
#include <tstitch/sampler/sampler.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// A sampler: by DDIM to the middle of the step in lambda, then the whole step with the x_0 of the middle. With `carry`
// the way to the middle takes a share of the x_0 that the step before had there, which is the rule's state.
struct Midpoint {
  double carry = 0;  // in [0, 1)

  struct State {
    at::Tensor x_0 = {};
  };

  std::string name() const { return carry > 0 ? "Midpoint with carry" : "Midpoint"; }
  int evaluations(tstitch::Step const& step) const { return step.to.sigma > 0 ? 2 : 1; }
  void validate() const {
    if (!(carry >= 0 && carry < 1)) throw std::invalid_argument("Midpoint: carry must be in [0, 1)");
  }

  at::Tensor operator()(tstitch::StepInput const& in, State& state) const {
    const auto [from, to] = std::pair{in.step.from, in.step.to};
    at::Tensor x_0 = in.predict().x_0;
    if (evaluations(in.step) == 1) return x_0;
    if (state.x_0.defined()) x_0 = x_0.mul(1 - carry).add(state.x_0, carry);
    const tstitch::Timestep middle = in.noise_schedule.point((from.lambda() + to.lambda()) / 2);
    state.x_0 = in.denoise(ddim(in.x, x_0, from, middle.level), middle).x_0;  // replaced, never changed in place
    return ddim(in.x, state.x_0, from, to);
  }

  static at::Tensor ddim(at::Tensor const& x, at::Tensor const& x_0, tstitch::NoiseLevel from, tstitch::NoiseLevel to) {
    const double keep = to.sigma / from.sigma;
    return x.mul(keep).add(x_0, to.alpha - keep * from.alpha);
  }
};

// A routing rule: the small network at both ends of the run, the large one between.
struct FirstAndLast {
  double first = 0.3, last = 0.1;  // shares of the steps

  std::size_t operator()(tstitch::Step const& step) const {
    const int begin = tstitch::share_of_steps("FirstAndLast", "first", first, step.count);
    const int end = step.count - tstitch::share_of_steps("FirstAndLast", "last", last, step.count);
    return step.index < begin || step.index >= end ? 0 : 1;
  }
};

// A network of one's own code: eps = slope x + offset, with two weights for each timestep.
struct Affine {
  std::vector<float> slopes, offsets;
  bool knows_timestep = true;  // takes t as a number, and no tensor of it

  at::Tensor operator()(at::Tensor const& x, at::Tensor const&, tstitch::Condition const&,
                        std::optional<double> t) const {
    return x.mul(at(slopes, t.value())).add(at(offsets, t.value()));
  }

  static double at(std::vector<float> const& values, double t) {
    const std::size_t below = std::min(std::size_t(t), values.size() - 2);
    return values[below] + (t - double(below)) * (values[below + 1] - values[below]);
  }
};

// Its file: a line that says what it is, the keys of file/metadata.hpp, an empty line, the weights.
struct AffineFile {
  static constexpr auto magic = "affine network";

  std::map<std::string, std::string> keys;
  std::vector<float> weights;

  explicit AffineFile(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::string line;
    if (!std::getline(file, line) || line != magic) throw std::runtime_error(path + ": must be an affine network");
    while (std::getline(file, line) && !line.empty()) {
      const std::size_t equals = std::min(line.find('='), line.size());
      keys[line.substr(0, equals)] = line.substr(std::min(equals + 1, line.size()));
    }
    for (float weight = 0; file.read(reinterpret_cast<char*>(&weight), sizeof weight);) weights.push_back(weight);
  }
};

tstitch::FileReader affine_reader() {
  return {.reads =
              [](std::string const& path) {
                std::ifstream file(path, std::ios::binary);
                std::string line;
                return std::getline(file, line) && line == AffineFile::magic;
              },
          .info = [](std::string const& path) { return tstitch::read_network_info(AffineFile(path).keys, path); },
          .load =
              [](std::string const& path, tstitch::LoadOptions const& options) {
                const AffineFile file(path);
                const tstitch::NetworkInfo info = tstitch::read_network_info(file.keys, path);
                const std::size_t half = std::size_t(info.noise_schedule.value().num_train_timesteps());
                if (file.weights.size() != 2 * half) throw std::runtime_error(path + ": must have two weights a step");
                const auto middle = file.weights.begin() + std::ptrdiff_t(half);
                return tstitch::Network(Affine{{file.weights.begin(), middle}, {middle, file.weights.end()}}, info,
                                        options.device);
              }};
}

// The network that is exact for data N(0.3, deviation^2).
void write_affine(std::string const& path, std::string const& name, double deviation) {
  std::ofstream file(path, std::ios::binary);
  file << AffineFile::magic << "\nformat=1\nname=" << name
       << "\ninput_channels=1\ninput_height=64\ninput_width=64\nprediction=epsilon\ntimestep_type=float32\n"
          "noise_schedule=linear\nnum_train_timesteps=1000\nbeta_start=0.0001\nbeta_end=0.02\n\n";
  const tstitch::NoiseSchedule noise = tstitch::NoiseSchedule::linear();
  std::vector<float> slopes, offsets;
  for (int t = 0; t < 1000; ++t) {
    const auto [alpha, sigma] = noise.at(t);
    const double slope = sigma / (alpha * alpha * deviation * deviation + sigma * sigma);
    slopes.push_back(float(slope));
    offsets.push_back(float(-0.3 * alpha * slope));
  }
  for (std::vector<float> const& values : {slopes, offsets}) {
    file.write(reinterpret_cast<char const*>(values.data()), std::streamsize(values.size() * sizeof(float)));
  }
}

}  // namespace

int main() try {
  write_affine("small.affine", "small", 0.6);  // a little wrong
  write_affine("large.affine", "large", 0.5);
  const std::vector<tstitch::Network> networks =
      tstitch::load_networks({"small.affine", "large.affine"}, {.device = at::kCPU, .readers = {affine_reader()}});

  const tstitch::SamplingOptions options{.steps = 20, .spacing = tstitch::Spacing::trailing()};
  for (Midpoint const& rule : {Midpoint{}, Midpoint{.carry = 0.1}}) {
    const tstitch::Sampler sampler{networks[0].noise_schedule(), FirstAndLast{.first = 0.3, .last = 0.1}, options,
                                   rule};
    const std::vector<int> calls = sampler.plan().calls();
    const at::Tensor x = sampler.sample(networks, {.count = 16, .seed = 1}).images;
    std::printf("%s: '%s' takes %d evaluations, '%s' %d; mean %.2f, deviation %.2f\n", sampler.plan().sampler.c_str(),
                networks[0].info().name.c_str(), calls[0], networks[1].info().name.c_str(), calls[1],
                x.mean().item<double>(), x.std().item<double>());
  }
  std::printf("data: mean 0.3, deviation 0.5\n");
} catch (std::exception const& error) {
  std::cerr << "extending: " << error.what() << "\n";
  return 1;
}
