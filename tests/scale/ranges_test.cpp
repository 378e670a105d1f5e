#include <tstitch/scale/generate.hpp>
#include <tstitch/scale/heartbeat.hpp>
#include <tstitch/scale/ranges.hpp>

#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// A worker with what it has taken.
struct Hand {
  Hand(MemoryStore& store, LeaseOptions const& options, std::int64_t all, std::int64_t size)
      : worker(store, options), ranges(worker, "work", all, size) {}

  Worker<MemoryStore> worker;
  Ranges<MemoryStore> ranges;
  std::vector<IndexRange> taken = {};
};

}  // namespace

TEST_CASE("ranges are taken in order, and the last is smaller") {
  MemoryStore store;
  Worker worker(store);
  Ranges ranges(worker, "work", 10, 4);
  std::vector<std::int64_t> firsts, counts;
  while (const auto range = ranges.take()) {
    firsts.push_back(range->first), counts.push_back(range->count);
    CHECK(ranges.finish(*range));
  }
  CHECK(firsts == std::vector<std::int64_t>{0, 4, 8});
  CHECK(counts == std::vector<std::int64_t>{4, 4, 2});
  CHECK(ranges.finished());
}

TEST_CASE("what a worker leaves is taken by another, at once or after its lease") {
  MemoryStore store;
  double now = 0;
  const LeaseOptions options{.seconds = 10, .clock = [&] { return now; }};
  Hand dead(store, options, 2, 1), alive(store, options, 2, 1);
  const IndexRange first = dead.ranges.take().value(), second = dead.ranges.take().value();
  CHECK_FALSE(alive.ranges.take());
  CHECK_FALSE(alive.ranges.finished());
  dead.ranges.give_back(first);
  CHECK(alive.ranges.take().value().number == first.number);
  CHECK(alive.ranges.finish(first));
  now = 9.9;  // since the other was first looked at
  CHECK_FALSE(alive.ranges.take());
  dead.worker.beat();
  now = 12;
  CHECK_FALSE(alive.ranges.take());  // a sign of life
  now = 21.9;
  CHECK_FALSE(alive.ranges.take());
  now = 22.1;
  CHECK(alive.ranges.take().value().number == second.number);
  CHECK_FALSE(dead.ranges.finish(second));  // it was slow, not dead
  CHECK_FALSE(alive.ranges.finished());
  CHECK(alive.ranges.finish(second));
  CHECK(alive.ranges.finished());
}

TEST_CASE("a worker that says it goes has gone at once") {
  MemoryStore store;
  Hand one(store, {}, 1, 1), other(store, {}, 1, 1);
  one.ranges.take();
  CHECK(other.worker.count() == 2);
  one.worker.leave();
  CHECK(other.worker.count() == 1);
  CHECK(other.ranges.take().has_value());
}

TEST_CASE("who hosts the store goes behind those who were to come") {
  MemoryStore store;
  Worker host(store);
  std::atomic<bool> gone = false;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    Worker late(store);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    gone = true;
    late.leave();
  });
  host.leave_last(2, 20);
  CHECK(gone);
  other.join();
  host.leave_last(3, 0.01);  // the third never comes
}

TEST_CASE("whoever comes, goes, dies, sleeps and wakes, every index counts once") {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned most) { return std::int64_t(random() % most); };
    MemoryStore store;
    double now = 0;
    const LeaseOptions options{.seconds = 5, .clock = [&] { return now; }};
    const std::int64_t all = 1 + below(60), size = 1 + below(7);
    std::vector<std::unique_ptr<Hand>> hands, sleepers;
    std::vector<int> finished(std::size_t(all), 0);
    int deaths = 0;
    const auto finish = [&](Hand& hand) {
      const std::size_t which = std::size_t(below(unsigned(hand.taken.size())));
      const IndexRange range = hand.taken[which];
      hand.taken.erase(hand.taken.begin() + std::ptrdiff_t(which));
      if (below(8) == 0) return hand.ranges.give_back(range);
      if (!hand.ranges.finish(range)) return;
      for (std::int64_t i = 0; i < range.count; ++i) ++finished[std::size_t(range.first + i)];
    };
    bool done = false;
    for (int moves = 0; !done; ++moves) {
      REQUIRE(moves < 100'000);
      now += double(below(100)) / 100;
      for (auto const& hand : hands) hand->worker.beat();
      if (hands.empty() || (hands.size() < 5 && below(10) == 0)) {
        hands.push_back(std::make_unique<Hand>(store, options, all, size));
      }
      const std::size_t who = std::size_t(below(unsigned(hands.size())));
      Hand& hand = *hands[who];
      const auto move = below(20);
      if (move < 2) {  // falls asleep, beyond its lease or not, or dies
        if (below(2)) sleepers.push_back(std::move(hands[who]));
        hands.erase(hands.begin() + std::ptrdiff_t(who));
        ++deaths;
      } else if (move == 2 && !sleepers.empty()) {
        hands.push_back(std::move(sleepers.back()));
        sleepers.pop_back();
      } else if (move < 12 && hand.taken.size() < 3) {
        if (const auto range = hand.ranges.take()) hand.taken.push_back(*range);
        done = hand.taken.empty() && hand.ranges.finished();
      } else if (!hand.taken.empty()) {
        finish(hand);
      }
    }
    CAPTURE(seed, deaths);
    CHECK(finished == std::vector<int>(std::size_t(all), 1));
    // Those who sleep until all is over change nothing.
    for (auto const& hand : sleepers) {
      for (IndexRange const& range : hand->taken) CHECK_FALSE(hand->ranges.finish(range));
      CHECK_FALSE(hand->ranges.take());
      CHECK(hand->ranges.finished());
    }
  }
}

TEST_CASE("threads share the work, and each range is counted once") {
  MemoryStore store;
  std::vector<std::atomic<int>> worked(50), counted(50);
  std::atomic<int> finishers = 0;
  const auto work = [&] {
    Worker worker(store);
    Ranges ranges(worker, "work", 50, 1);
    const bool finished = generate(
        ranges,
        [&](IndexRange const& range) {
          ++worked[std::size_t(range.first)];
          return std::optional<int>(int(range.first));
        },
        [&](IndexRange const& range, int result) {
          counted[std::size_t(range.first)] += result == range.first ? 1 : 100;
        },
        [] {
          std::this_thread::yield();
          return true;
        });
    if (finished) ++finishers;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  CHECK(finishers == 4);
  for (auto const& times : worked) CHECK(times == 1);
  for (auto const& times : counted) CHECK(times == 1);
}

TEST_CASE("who stops or fails gives back what it has") {
  MemoryStore store;
  Worker worker(store);
  Ranges ranges(worker, "work", 3, 1);
  const auto ignore = [](IndexRange const&, bool) {};
  const auto never = [] { return false; };
  CHECK_FALSE(generate(
      ranges, [](IndexRange const&) { return std::optional<bool>(); }, ignore, never));
  const auto fails = [](IndexRange const&) -> std::optional<bool> { throw std::runtime_error("a full disk"); };
  CHECK(message_of<std::runtime_error>([&] { generate(ranges, fails, ignore, never); }) == "a full disk");
  std::int64_t left = 0;
  const auto works = [&](IndexRange const& range) { return left += range.count, std::optional<bool>(true); };
  CHECK(generate(ranges, works, ignore, never));
  CHECK(left == 3);
}

TEST_CASE("ranges and workers refuse what they cannot be") {
  MemoryStore store;
  Worker worker(store);
  const auto refusal = [](auto action) { return message_of<std::invalid_argument>(action); };
  using R = Ranges<MemoryStore>;
  CHECK(refusal([&] { R(worker, "a", 0, 1); }) == "tstitch::Ranges: there must be an index at least, got 0");
  CHECK(refusal([&] { R(worker, "a", 1, 0); }) == "tstitch::Ranges: a range must have an index at least, got 0");
  for (const double seconds : {0.0, -1.0, std::nan(""), 1e10}) {
    CHECK(refusal([&] {
            Worker(store, LeaseOptions{.seconds = seconds});
          }).starts_with("tstitch::Worker: a lease must be above 0 and below 10^9 seconds, got "));
  }
  R ranges(worker, "a", 2, 1);
  const std::string rule =
      "tstitch::Ranges: a range must have been taken by this worker, and be neither finished nor given back, got ";
  CHECK(refusal([&] { ranges.finish(ranges.range(1)); }) == rule + "1");
  const IndexRange range = ranges.take().value();
  ranges.finish(range);
  CHECK(refusal([&] { ranges.finish(range); }) == rule + "0");
  CHECK(refusal([&] { ranges.give_back(range); }) == rule + "0");
  CHECK(refusal([&] { ranges.range(2); }) == "tstitch::Ranges: number must be that of a range, got 2");
}

TEST_CASE("a heartbeat goes on until it fails, and says so") {
  std::atomic<int> beats = 0;
  {
    const Heartbeat heartbeat([&] { ++beats; }, 0.001, 5);
    while (beats < 3) std::this_thread::yield();
    heartbeat.check();
  }
  const int before = beats;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(beats == before);
  const Heartbeat fails([] { throw std::runtime_error("gone"); }, 1, 5);
  std::string message;
  while (message.empty()) {
    try {
      fails.check();
    } catch (std::runtime_error const& error) {
      message = error.what();
    }
  }
  CHECK(message == "gone");
  const auto hang = std::make_shared<std::atomic<bool>>(true);
  {
    const Heartbeat slow(
        [hang] {
          while (*hang) std::this_thread::yield();
        },
        1, 0.05);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK(message_of<std::runtime_error>([&] { slow.check(); }) ==
          "tstitch::Heartbeat: the others must answer in 0.05 s, got no answer");
  }
  *hang = false;
  CHECK_THROWS_AS(Heartbeat({}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(Heartbeat([] {}, 0, 1), std::invalid_argument);
  CHECK_THROWS_AS(Heartbeat([] {}, 1, 0), std::invalid_argument);
}
