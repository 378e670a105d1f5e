// A prompt without Python: text_encoder_calls FILE TEXTS OUTPUT [NEGATIVE [CACHE]]
//
// Reads texts that end with a byte of 0 each, and writes for each condition a line "name sizes | sizes of null" and the
// bytes of both, and at last those of the tokens. tests/export/text_encoder_test.py compares with Python.
#include <tstitch/file/prompt_cache.hpp>
#include <tstitch/file/text_encoder.hpp>

#include <chrono>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

using namespace tstitch;

namespace {

void write(std::ostream& out, at::Tensor const& tensor) {
  const at::Tensor all = tensor.contiguous();
  out.write(static_cast<char const*>(all.const_data_ptr()), std::streamsize(all.nbytes()));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) return 2;
  std::ifstream in(argv[2], std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(in), {}};
  std::vector<std::string> texts;
  for (std::size_t begin = 0; begin < all.size();) {
    const std::size_t end = all.find('\0', begin);
    texts.push_back(all.substr(begin, end - begin));
    begin = end + 1;
  }
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  const auto start = Clock::now();
  const auto warn = [](std::string const& line) { std::cerr << line << '\n'; };
  const TextEncoder encoder =
      argc > 5 ? PromptCache(argv[5], {.warn = warn}).load(argv[1]) : load_text_encoder(argv[1]);
  const double loaded = seconds(start);
  std::optional<std::string> negative;
  if (argc > 4) negative = argv[4];
  std::ofstream out(argv[3], std::ios::binary);
  for (NamedCondition const& each : encoder.conditions(texts, negative)) {
    out << each.name << '\n';
    write(out, each.value);
    write(out, each.null);
  }
  out << "tokens\n";
  const TextTokens tokens = encoder.tokenize(texts);
  for (at::Tensor const& each : {tokens.ids, tokens.mask, tokens.cut}) write(out, each);
  for (int i = 0; i < 4; ++i) encoder.tokenize({texts.front()});
  const auto again = Clock::now();
  for (int i = 0; i < 20; ++i) encoder.tokenize({texts.front()});
  std::cout << "loaded in " << loaded << " s, " << seconds(again) / 20 * 1000 << " ms to tokenize the first text\n";
  return out.good() ? 0 : 1;
} catch (std::exception const& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
