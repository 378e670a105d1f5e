#include <tstitch/output/progress.hpp>
#include <tstitch/tstitch.hpp>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <thread>

#include "../catch.hpp"

using namespace tstitch;

namespace {

std::string contents(std::FILE* file) {
  std::rewind(file);
  std::string text;
  for (int c; (c = std::fgetc(file)) != EOF;) text += char(c);
  return text;
}

}  // namespace

TEST_CASE("without a terminal, progress is a plain line at each tenth of the run") {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x; },
                        {.channels = 1, .height = 2, .width = 2});
  const DDIM sampler{NoiseSchedule::linear(), Stitch{0.5}, {.steps = 40}};
  {
    ProgressBar progress(6, {"small", "large"}, file.get());
    sampler.sample({network, network}, {.count = 6, .batch_size = 3}, std::ref(progress));
  }
  const std::string text = contents(file.get());
  CHECK(std::count(text.begin(), text.end(), '\n') == 10);
  CHECK(text.find('\r') == std::string::npos);
  CHECK_THAT(text, ContainsSubstring(" 10%  step 8/40  small"));
  CHECK_THAT(text, ContainsSubstring(" 50%  step 40/40  large"));
  CHECK_THAT(text, ContainsSubstring("100%  step 40/40  large"));
  CHECK_THAT(text, ContainsSubstring("images/s  0:00 left"));
  CHECK_THROWS_WITH(ProgressBar(0), ContainsSubstring("ProgressBar: images must be at least 1, got 0"));
  CHECK_THROWS_WITH(ProgressBar(std::int64_t(1) << 62), ContainsSubstring("ProgressBar: images must be at most 10^12"));
}

TEST_CASE("without a terminal, a run shows early that it goes on") {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  bool first = true;
  const Network slow(
      [&](at::Tensor const& x, at::Tensor const&) {
        if (std::exchange(first, false)) std::this_thread::sleep_for(std::chrono::milliseconds(1100));
        return x;
      },
      {.channels = 1, .height = 2, .width = 2});
  ProgressBar progress(1, {"\x1B[2Jslow"}, file.get());
  progress.begin();
  CHECK(contents(file.get()) == "  0%  1 image\n");
  DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 40}}.sample({slow}, {}, std::ref(progress));
  const std::string text = contents(file.get());
  CHECK_THAT(text, ContainsSubstring("  0%  1 image\n  2%  step 1/40  \\x1b[2Jslow  0."));
  CHECK(std::count(text.begin(), text.end(), '\n') == 12);
}

TEST_CASE("a progress bar fits into every window, and says the most important first") {
  using tstitch::detail::progress_text;
  const std::vector<std::string> about{"step 12/50", "a network", "1.25 images/s"};
  const auto at = [&](int columns) { return progress_text(columns, 9, 20, about, "0:59 left"); };
  CHECK(at(79) == "[##########.............]  45%  step 12/50  a network  1.25 images/s  0:59 left");
  CHECK(at(59) == " 45%  step 12/50  a network  1.25 images/s  0:59 left");
  CHECK(at(51) == "[####......]  45%  step 12/50  a network  0:59 left");
  CHECK(at(39) == " 45%  step 12/50  a network  0:59 left");
  CHECK(at(19) == " 45%  0:59 left");
  CHECK(at(4) == " 45%");
  for (int columns : {3, 0, -1}) CHECK(at(columns).empty());
  CHECK(progress_text(40, 0, 1, {}, "") == "[........................]   0%");
  CHECK(progress_text(40, 1, 1, {}, "") == "[########################] 100%");
  CHECK(progress_text(40, 29, 100, {}, "").substr(26) == "  29%");  // 0.29 * 100 is below 29
  // Characters of two columns, and what stands for them at most.
  const std::vector<std::string> wide{"大きいネットワーク", "größer"};
  for (int columns = 4; columns < 100; ++columns) {
    const std::string text = progress_text(columns, 1, 3, wide, "9:59 left");
    CHECK(tstitch::detail::columns_of(text) <= columns);
  }
  CHECK(tstitch::detail::columns_of("大きいネットワーク") == 18);
  CHECK(tstitch::detail::columns_of("größer") == 6);
  CHECK(progress_text(24, 1, 3, wide, "") == " 33%  大きいネットワーク");
}

TEST_CASE("the time that is left is told where it can be") {
  using tstitch::detail::time_left;
  CHECK(time_left(0) == "0:00 left");
  CHECK(time_left(59.6) == "1:00 left");
  CHECK(time_left(5999) == "99:59 left");
  CHECK(time_left(6000) == "1 h 40 min left");
  for (const double unknown : {double(NAN), double(INFINITY), -1.0, 1e300}) CHECK(time_left(unknown).empty());
}

TEST_CASE("progress is that of the run, wherever it begins and whichever way it goes") {
  const Network network([](at::Tensor const& x, at::Tensor const&) { return x.mul(0); },
                        {.channels = 1, .height = 2, .width = 2});
  const at::Tensor image = noise({1}, NoiseAddress::initial(), {1, 2, 2}, at::kFloat);
  const auto shown = [&](auto const& sampler, Request const& request) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
    ProgressBar progress(1, {"network"}, file.get());
    sampler.sample({network}, request, std::ref(progress));
    std::string all;
    std::istringstream lines(contents(file.get()));
    for (std::string line; std::getline(lines, line);) all += line.substr(0, line.find("  network")) + "\n";
    return all;
  };
  const std::string expected = " 25%  step 1/4\n 50%  step 2/4\n 75%  step 3/4\n100%  step 4/4\n";
  CHECK(shown(DDIM{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 8}},
              {.initial_image = image, .strength = 0.5}) == expected);
  CHECK(shown(Inversion{NoiseSchedule::linear(), SingleNetwork{}, {.steps = 4}, DDIMUpdate{}},
              {.initial_image = image}) == expected);
}
