// Prompts that are not encoded twice: kept_prompts TEXT_ENCODER FOLDER PROMPT...
#include <tstitch/file/prompt_cache.hpp>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

using Texts = std::vector<std::string>;
using Conditions = std::vector<tstitch::NamedCondition>;

Conditions encode_once(std::string const& file, std::string const& folder, Texts const& prompts) {
  const auto warn = [](std::string const& line) { std::cerr << line << "\n"; };
  const tstitch::PromptCacheOptions options{.most_bytes = 100'000'000, .warn = warn};
  const tstitch::PromptCache cache(folder, options);
  const tstitch::TextEncoder encoder = cache.load(file);  // reads weights where a prompt is new
  return encoder.conditions(prompts, /*negative=*/"blurry");
}

int main(int argc, char** argv) try {
  if (argc < 4) return 2;
  const Texts prompts(argv + 3, argv + argc);
  const Conditions conditions = encode_once(argv[1], argv[2], prompts);
  // A file that `tstitch_sample --condition` takes.
  tstitch::save_conditions(std::string(argv[2]) + "/prompts.pt", conditions, prompts);
  std::cout << conditions[0].name << ": " << conditions[0].value.sizes() << ", again the same "
            << encode_once(argv[1], argv[2], prompts)[0].value.equal(conditions[0].value) << "\n";
} catch (std::exception const& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
