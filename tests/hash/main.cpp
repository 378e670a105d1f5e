// Prints a digest of the noise, of the host's weighted sums and of tables, whose bits must be the same for every
// compiler, its flags and the processor. Without torch, so that it can be built for another processor.
#include <tstitch/base/contraction.hpp>
#include <tstitch/plan/plan.hpp>
#include <tstitch/tensor/host_sum.hpp>
#include <tstitch/tensor/philox.hpp>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

// What is always inlined is compiled like the function that it is in.
TSTITCH_NO_CONTRACTION

using namespace tstitch;

namespace {

/// FNV-1a.
class Digest {
 public:
  template <class Number>
  void add(Number value) {
    unsigned char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);  // the least significant comes first on all that is tested
    for (const unsigned char byte : bytes) hash_ = (hash_ ^ byte) * 0x100000001b3;
  }
  template <class Number>
  void add(std::vector<Number> const& values) {
    for (const Number value : values) add(value);
  }
  void print(char const* name) const { std::printf("%s %016llx\n", name, static_cast<unsigned long long>(hash_)); }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

/// A million numbers of many addresses: whole blocks of the vector code and less, both halves of a seed, steps, draws.
template <class Fill>
void noise(char const* name, Fill fill) {
  Digest digest;
  std::vector<float> values;
  std::int64_t left = 1000000;
  for (std::uint32_t address = 0; left > 0; ++address) {
    values.resize(std::size_t(1 + address * 97 % 4096));
    fill(values.data(), std::int64_t(values.size()), detail::PhiloxCounter{0, 0, address % 7, address % 3},
         detail::philox_keys({address * 0x9E3779B9, address / 2}));
    digest.add(values);
    left -= std::int64_t(values.size());
  }
  digest.print(name);
}

template <class Real>
void sums(char const* name) {
  Digest digest;
  for (const std::int64_t count : {detail::sum_block, std::int64_t(7), std::int64_t(1000)}) {
    std::vector<float> noise(std::size_t(4 * count));
    detail::fill_normals(noise.data(), 4 * count, {0, 0, 1, 0}, detail::philox_keys({7, 0}));
    const std::vector<Real> values(noise.begin(), noise.end());
    std::vector<Real> out(static_cast<std::size_t>(count));
    const auto term = [&](int k) { return values.data() + k * count; };
    detail::sum_of_two(out.data(), Real(0.7), term(0), Real(-1.3), term(1), count);
    detail::add_term(out.data(), Real(1.1), Real(0.3), term(2), count);
    detail::add_term(out.data(), Real(1), Real(-2.9), term(3), count);
    digest.add(out);
  }
  digest.print(name);
}

/// What is made by sums, products, quotients and roots, which all machines round alike.
void tables() {
  Digest digest;
  const std::vector<NoiseSchedule> schedules{NoiseSchedule::linear(), NoiseSchedule::scaled_linear(),
                                             NoiseSchedule::scaled_linear().with_zero_terminal_snr(),
                                             NoiseSchedule::linear().in_float32(), NoiseSchedule::flow()};
  for (NoiseSchedule const& schedule : schedules) {
    digest.add(schedule.alphas_cumprod());
    for (int t = 0; t <= schedule.noisiest(); ++t) {
      digest.add(schedule.alpha(t));
      digest.add(schedule.sigma(t));
    }
  }
  const auto add = [&](NoiseSchedule const& schedule, Spacing const& spacing) {
    for (const int steps : {1, 7, 50}) {
      for (Timestep const& each : spacing(schedule, steps)) {
        digest.add(each.t);
        digest.add(each.level.alpha);
        digest.add(each.level.sigma);
      }
    }
  };
  for (Spacing const& spacing : {Spacing::linspace(), Spacing::leading(), Spacing::trailing(),
                                 Spacing::quadratic({.include_last = false, .round = true})}) {
    add(schedules[0], spacing);
  }
  for (const double shift : {1.0, 3.0, 1.15}) add(schedules[4], Spacing::shifted(shift));
  digest.print("tables");
}

/// What has logarithms, powers and cosines in it besides. Their last bits are those of the C library.
void library_tables() {
  Digest digest;
  const NoiseSchedule linear = NoiseSchedule::linear(), cosine = NoiseSchedule::cosine();
  digest.add(cosine.alphas_cumprod());
  for (int k = 0; k < 5000; ++k) {
    const double t = k * 0.1;
    digest.add(linear.alpha(t));
    digest.add(linear.sigma(t));
    digest.add(linear.lambda(t));
    digest.add(linear.timestep(linear.lambda(t)));
  }
  for (Spacing const& spacing : {Spacing::karras(), Spacing::uniform_logsnr(), Spacing::beta(), Spacing::quadratic(),
                                 Spacing::beta_on_sigma()}) {
    for (Timestep const& each : spacing(linear, 50)) {
      digest.add(each.t);
      digest.add(each.level.alpha);
      digest.add(each.level.sigma);
    }
  }
  digest.print("library_tables");
}

}  // namespace

int main() {
  noise("noise", [](auto... given) { detail::fill_normals(given...); });
  noise("noise_without_vectors", [](auto... given) { detail::fill_blocks<detail::philox_block>(given...); });
  sums<float>("sums_float32");
  sums<double>("sums_float64");
  tables();
  library_tables();
}
