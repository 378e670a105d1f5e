#include <tstitch/output/progress.hpp>
#include <tstitch/tstitch.hpp>

#include <cstdlib>
#include <memory>
#include <sstream>

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
