// Prompts that are not encoded twice: kept_prompts TEXT_ENCODER FOLDER PROMPT...
#include <tstitch/file/prompt_cache.hpp>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 4) return 2;
  const std::vector<std::string> prompts(argv + 3, argv + argc);
  const auto warn = [](std::string const& line) { std::cerr << line << "\n"; };
  const tstitch::PromptCacheOptions options{.most_bytes = 100'000'000, .warn = warn};
  const tstitch::PromptCache cache(argv[2], options);
  const tstitch::TextEncoder encoder = cache.load(argv[1]);  // reads weights where a prompt is new
  const std::vector<tstitch::NamedCondition> conditions = encoder.conditions(prompts, /*negative=*/"blurry");
  // A file that `tstitch_sample --condition` takes.
  tstitch::save_conditions(cache.folder() + "/prompts.pt", conditions, prompts);
  std::cout << conditions[0].name << ": " << conditions[0].value.sizes() << ", again the same "
            << cache.load(argv[1]).conditions(prompts, "blurry")[0].value.equal(conditions[0].value) << "\n";
} catch (std::exception const& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
