#include <tstitch/output/progress.hpp>
#include <tstitch/tstitch.hpp>

#include <cstdlib>
#include <memory>

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
}
