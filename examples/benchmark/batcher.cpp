/// @file
/// Requests that come one by one, served one by one and by a Batcher, in one run:
///
///     benchmark_batcher --model small.pt --model large.pt --backend native-e4m3+graph
///
/// Each request is one picture with a class, a seed and a moment of its own. Measured are pictures a second where
/// requests always wait, for a plain batch, one by one, and the Batcher; and the time from a request to its picture
/// where they come at random (Poisson) at a share of what one by one can serve, with the same moments for both.
#include <tstitch/scale/batcher.hpp>
#include <tstitch/tstitch.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../common/device.hpp"
#include "../common/network.hpp"
#include "../common/program.hpp"

namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::vector<std::string> models = {};
  std::string backend = "auto", device = "auto", dtype = "auto";
  double ratio = 0.4, guidance = 1.5;
  int steps = 100;
  std::int64_t batch = 32;
  double seconds = 10;  ///< of each measurement
  std::vector<double> loads{0.85, 1.7};
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Served {
 public:
  Served(Arguments const& arguments, std::vector<tstitch::Network> networks)
      : arguments_(arguments),
        networks_(std::move(networks)),
        sampler_(tstitch::DDIM{
            networks_.back().noise_schedule(), tstitch::Stitch{arguments.ratio}, {.steps = arguments.steps}}) {}

  std::vector<tstitch::Network> const& networks() const { return networks_; }
  tstitch::AnySampler const& sampler() const { return sampler_; }

  tstitch::Request request(std::uint64_t number) const {
    tstitch::Request request{.seed = number};
    const std::int64_t classes = networks_.back().info().num_classes;
    if (classes > 0) request.labels = {std::int64_t(number * 7919 % std::uint64_t(classes))};
    request.guidance.scale = arguments_.guidance;
    return request;
  }

  std::vector<std::int64_t> call_sizes() const { return tstitch::Batcher(networks_, options(false)).call_sizes(); }

  void draw(std::int64_t pictures, std::uint64_t number) const {
    tstitch::Request whole = request(number);
    for (std::int64_t i = 1; i < pictures && !whole.labels.empty(); ++i) {
      whole.labels.push_back(request(number + std::uint64_t(i)).labels[0]);
    }
    whole.count = pictures;
    sampler_.sample(networks_, whole).images.select(0, 0).flatten().select(0, 0).item<double>();  // waits
  }

  /// Pictures a second, of batches one after another.
  double rate_of_batches(std::int64_t pictures) const {
    draw(pictures, 0);
    std::int64_t drawn = 0;
    const auto start = Clock::now();
    while (drawn == 0 || seconds_since(start) < arguments_.seconds)
      draw(pictures, std::uint64_t(drawn)), drawn += pictures;
    return double(drawn) / seconds_since(start);
  }

  tstitch::BatcherOptions options(bool padded) const {
    return {.batch_size = arguments_.batch, .pad_batches = padded, .most_waiting = 1u << 20};
  }

  /// Pictures a second where requests always wait.
  /// @param filled becomes the share of the images of calls that were asked for
  double rate_of_batcher(bool padded, double& filled) const {
    tstitch::Batcher batcher(networks_, options(padded));
    std::deque<tstitch::BatcherTicket> tickets;
    std::uint64_t submitted = 0, ended = 0;
    const auto end_one = [&] {
      tickets.front().wait();
      tickets.pop_front();
      ++ended;
    };
    // On a GPU some of them are given out and not drawn yet.
    const std::size_t waiting = std::size_t(8 * arguments_.batch);
    for (std::size_t begun = 0; begun < 2 * waiting; ++begun) {  // until they are at different steps
      tickets.push_back(batcher.submit(sampler_, request(submitted++)));
      if (tickets.size() > waiting) end_one();
    }
    ended = 0;
    const auto start = Clock::now();
    while (ended == 0 || seconds_since(start) < arguments_.seconds) {
      tickets.push_back(batcher.submit(sampler_, request(submitted++)));
      end_one();
    }
    const double rate = double(ended) / seconds_since(start);
    tstitch::BatcherCounters all;
    for (tstitch::BatcherCounters const& each : batcher.counters()) {
      all.images += each.images;
      all.filled_up += each.filled_up;
    }
    filled = double(all.images) / double(all.filled_up);
    for (tstitch::BatcherTicket const& ticket : tickets) ticket.cancel();
    return rate;
  }

  /// Moments at which requests come, in seconds.
  std::vector<double> moments(double rate) const {
    std::mt19937_64 random(1);
    std::exponential_distribution<double> gap(rate);
    std::vector<double> moments;
    for (double t = gap(random); t < 2 * arguments_.seconds; t += gap(random)) moments.push_back(t);
    return moments;
  }

  /// Calls submit(number) at each moment, from a thread of its own.
  template <class Submit>
  static std::thread comes(std::vector<double> const& moments, Clock::time_point start, Submit submit) {
    return std::thread([moments, start, submit] {
      for (std::size_t k = 0; k < moments.size(); ++k) {
        std::this_thread::sleep_until(
            start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(moments[k])));
        submit(std::uint64_t(k));
      }
    });
  }

  /// Seconds from each request to its picture, one by one.
  std::vector<double> one_by_one(std::vector<double> const& moments) const {
    std::vector<double> latencies;
    const auto start = Clock::now();
    for (std::size_t k = 0; k < moments.size(); ++k) {
      std::this_thread::sleep_until(
          start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(moments[k])));
      draw(1, std::uint64_t(k));
      latencies.push_back(seconds_since(start) - moments[k]);
    }
    return latencies;
  }

  /// The same by a Batcher.
  std::vector<double> batched(std::vector<double> const& moments) const {
    tstitch::Batcher batcher(networks_, options(false));
    std::mutex mutex;
    std::condition_variable came;
    std::deque<std::pair<std::size_t, tstitch::BatcherTicket>> tickets;
    const auto start = Clock::now();
    std::thread sender = comes(moments, start, [&](std::uint64_t k) {
      tstitch::BatcherTicket ticket = batcher.submit(sampler_, request(k));
      const std::lock_guard lock(mutex);
      tickets.emplace_back(std::size_t(k), std::move(ticket));
      came.notify_one();
    });
    // Pictures end nearly in the order of the requests; who waits for one that is late reads the clock of the others
    // late, so each has a waiter of its own.
    std::vector<double> latencies(moments.size());
    std::vector<std::thread> waiters;
    for (std::size_t k = 0; k < moments.size(); ++k) {
      std::unique_lock lock(mutex);
      came.wait(lock, [&] { return !tickets.empty(); });
      const auto next = tickets.front();
      tickets.pop_front();
      waiters.emplace_back([&, next] {
        next.second.wait();
        latencies[next.first] = seconds_since(start) - moments[next.first];
      });
    }
    sender.join();
    for (std::thread& waiter : waiters) waiter.join();
    return latencies;
  }

 private:
  Arguments arguments_;
  std::vector<tstitch::Network> networks_;
  tstitch::AnySampler sampler_;
};

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, std::size_t(share * double(values.size())))];
}

/// The mean of the last third over that of the second: a queue that grows makes it large.
double growth(std::vector<double> const& latencies) {
  const auto mean = [&](std::size_t begin, std::size_t end) {
    double sum = 0;
    for (std::size_t k = begin; k < end; ++k) sum += latencies[k];
    return end > begin ? sum / double(end - begin) : 0;
  };
  const std::size_t n = latencies.size();
  return n < 3 ? 1 : mean(n - n / 3, n) / mean(n / 3, n - n / 3);
}

int benchmark(Arguments const& arguments) {
  const at::Device device = device_of(arguments.device);
  const Served served(
      arguments, load_networks(arguments.models, {.device = device, .dtype = tstitch::dtype_named(arguments.dtype)},
                               {arguments.backend}));
  for (const std::int64_t size : served.call_sizes()) served.draw(size, 0);
  const double alone = served.rate_of_batches(1), batch = served.rate_of_batches(arguments.batch);
  std::printf("one by one        %8.3f pictures/s\n", alone);
  std::printf("batches of %-4lld   %8.3f pictures/s  %.2f times\n", static_cast<long long>(arguments.batch), batch,
              batch / alone);
  for (const bool padded : {false, true}) {
    double filled = 0;
    const double rate = served.rate_of_batcher(padded, filled);
    std::printf(
        "batcher%s %8.3f pictures/s  %.2f times one by one, %.2f of the batch; %.0f %% of its calls are requests\n",
        padded ? ", padded  " : "           ", rate, rate / alone, rate / batch, 100 * filled);
    std::fflush(stdout);
  }
  for (const double load : arguments.loads) {
    const std::vector<double> moments = served.moments(load * alone);
    std::printf(
        "\n%zu requests at %.2f a second, %.0f %% of what one by one can serve:  p50, p95 of the seconds to a "
        "picture\n",
        moments.size(), load * alone, 100 * load);
    const auto print = [](char const* name, std::vector<double> const& all) {
      std::printf("%-12s %7.3f %7.3f   later requests took %.2f times as long\n", name, quantile(all, 0.5),
                  quantile(all, 0.95), growth(all));
      std::fflush(stdout);
    };
    print("one by one", served.one_by_one(moments));
    print("batcher", served.batched(moments));
  }
  return 0;
}

}  // namespace

int main(int count, char** values) {
  return exit_code("benchmark_batcher", [&] {
    Arguments arguments;
    CLI::App app("Requests that come one by one, served one by one and by a Batcher.");
    app.add_option("--model", arguments.models, "networks in the order of use; repeat")
        ->required()
        ->allow_extra_args(false);
    app.add_option("--backend", arguments.backend, "of both networks")->capture_default_str();
    app.add_option("--dtype", arguments.dtype, "of both networks")->capture_default_str();
    app.add_option("--device", arguments.device, "cpu, cuda, cuda:1 ...")->capture_default_str();
    app.add_option("--ratio", arguments.ratio, "share of the steps for the first network")->capture_default_str();
    app.add_option("--guidance", arguments.guidance, "scale")->capture_default_str();
    app.add_option("--steps", arguments.steps, "of DDIM")->capture_default_str();
    app.add_option("--batch", arguments.batch, "pictures of a batch")->capture_default_str();
    app.add_option("--seconds", arguments.seconds, "of each measurement")->capture_default_str();
    app.add_option("--load", arguments.loads, "shares of what one by one can serve")->capture_default_str();
    try {
      app.parse(count, values);
    } catch (CLI::ParseError const& error) {
      return app.exit(error) == 0 ? 0 : 2;
    }
    return benchmark(arguments);
  });
}
