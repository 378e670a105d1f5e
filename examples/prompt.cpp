// A prompt to what a network is conditioned on, without Python: prompt TEXT_ENCODER PROMPT...
#include <tstitch/file/text_encoder.hpp>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 3) return 2;
  const std::vector<std::string> prompts(argv + 2, argv + argc);
  const tstitch::TextEncoder encoder = tstitch::load_text_encoder(argv[1]);
  const std::vector<tstitch::NamedCondition> conditions = encoder.conditions(prompts, /*negative=*/"blurry");
  for (tstitch::NamedCondition const& each : conditions) {
    std::cout << each.name << ": " << each.value.sizes() << ", without the prompt " << each.null.sizes() << "\n";
  }
  std::cout << "tokens there was no room for: " << encoder.tokenize(prompts).cut.sum().item<int64_t>() << "\n";
} catch (std::exception const& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
