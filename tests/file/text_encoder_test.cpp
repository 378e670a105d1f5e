// Text encoders: what they take, what they give, which files are refused. That the files of the exporter give what
// Python gives is tried in tests/export/text_encoder_test.py.

#include <tstitch/file/text_encoder.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

/// Row k: the bytes of text k, k, and their product; and a mask.
constexpr char forward[] =
    "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
    "  rows: List[List[float]] = []\n"
    "  mask: List[List[int]] = []\n"
    "  for k in range(len(texts)):\n"
    "    rows.append([float(len(texts[k])), float(k), float(len(texts[k]) * k)])\n"
    "    mask.append([1, 0])\n"
    "  return {\"text_mask\": torch.tensor(mask), \"text_embedding\": torch.tensor(rows).to(self.scale) * "
    "self.scale}\n";
constexpr char tokenize[] =
    "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
    "  n = len(texts)\n"
    "  ids = torch.full([n, 2], 7)\n"
    "  return ids, torch.ones_like(ids), torch.zeros([n], dtype=4)\n";

Metadata metadata(Metadata changes = {}) {
  changes.merge(Metadata{{"format", "1"},
                         {"kind", "text_encoder"},
                         {"name", "tiny"},
                         {"text_tokens", "2"},
                         {"outputs", "text_embedding float 3\ntext_mask int64 2"}});
  return changes;
}

std::string saved(Metadata const& texts = metadata(), std::string const& code = forward,
                  std::string const& more = tokenize, at::ScalarType type = at::kFloat) {
  torch::jit::Module module("tiny");
  module.register_parameter("scale", detail::host_tensor({1}, at::kFloat).fill_(0.5).to(type), false);
  if (!code.empty()) module.define(code);
  if (!more.empty()) module.define(more);
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : texts) files["tstitch/" + key] = value;
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/text_encoder.pt";
  module.save(path, files);
  return path;
}

at::Tensor rows(std::vector<std::vector<float>> const& values) {
  at::Tensor tensor = detail::host_tensor({std::int64_t(values.size()), std::int64_t(values[0].size())}, at::kFloat);
  float* to = tensor.mutable_data_ptr<float>();
  for (std::vector<float> const& row : values) to = std::copy(row.begin(), row.end(), to);
  return tensor;
}

template <class Error, class Call>
void must_refuse(Call call, std::vector<std::string> const& words) {
  std::string got = "nothing";
  try {
    call();
  } catch (Error const& error) {
    got = error.what();
  }
  for (std::string const& word : words) CHECK_THAT(got, ContainsSubstring(word));
  CHECK(got.find('\n') == std::string::npos);
}

TextEncoderParts parts() {
  return {.encode =
              [](std::vector<std::string> const& texts) {
                return std::vector<std::pair<std::string, at::Tensor>>{
                    {"text_embedding", detail::host_tensor({std::int64_t(texts.size()), 3}, at::kFloat).fill_(1)}};
              },
          .tokenize = [](std::vector<std::string> const&) { return TextTokens{}; },
          .info = {.name = "own", .outputs = {{.name = "text_embedding", .shape = {3}}}}};
}

}  // namespace

TEST_CASE("a text encoder gives what its file says, in the file's order") {
  const TextEncoder encoder = load_text_encoder(saved());
  CHECK(encoder.info().name == "tiny");
  CHECK(encoder.info().text_tokens == 2);
  CHECK(encoder.info().outputs.size() == 2);
  CHECK_FALSE(encoder.info().zeros_for_no_text);
  const auto found = encoder.encode({"ab", "", "猫"});
  REQUIRE(found.size() == 2);
  CHECK(found[0].name == "text_embedding");
  CHECK(found[0].value.equal(rows({{1, 0, 0}, {0, 0.5, 0}, {1.5, 1, 3}})));
  CHECK(found[1].name == "text_mask");
  CHECK(found[1].value.sizes() == at::IntArrayRef({3, 2}));
  CHECK(found[1].value.scalar_type() == at::kLong);
  CHECK_FALSE(found[0].null.defined());
  CHECK_FALSE(found[0].value.requires_grad());
  const TextTokens tokens = encoder.tokenize({"a", "b"});
  CHECK(tokens.ids.sizes() == at::IntArrayRef({2, 2}));
  CHECK(tokens.cut.sizes() == at::IntArrayRef({2}));
  // NUL is a character like others.
  CHECK(encoder.encode({std::string("a\0b", 3)})[0].value.equal(rows({{1.5, 0, 0}})));
  CHECK(read_text_encoder_info(saved()).name == "tiny");
}

TEST_CASE("many texts are encoded a few at once, and give what they give") {
  const TextEncoder encoder = load_text_encoder(saved());
  std::vector<std::string> texts;
  for (std::size_t k = 0; k < 71; ++k) texts.emplace_back(k, 'a');
  const auto found = encoder.encode(texts);
  CHECK(found[0].value.sizes() == at::IntArrayRef({71, 3}));
  CHECK(found[1].value.sizes() == at::IntArrayRef({71, 2}));
  for (std::int64_t k = 0; k < 71; ++k) {
    float const* const row = found[0].value.const_data_ptr<float>() + 3 * k;
    CHECK((row[0] == 0.5f * float(k) && row[1] == 0.5f * float(k % 32) && row[2] == 0.5f * float(k * (k % 32))));
  }
  // Of the last seven texts another size than of those before.
  const std::string other = std::string("def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n") +
                            "  return {\"text_embedding\": torch.zeros([len(texts), 3 if len(texts) > 9 else 4])}\n";
  const TextEncoder broken = load_text_encoder(saved(metadata({{"outputs", "text_embedding float 3"}}), other));
  must_refuse<std::runtime_error>(
      [&] { broken.encode(texts); },
      {"'text_embedding' must be of one size and type for all texts, got [7, 4] and [32, 3]"});
}

TEST_CASE("the null counterpart is the negative text, the empty text, or zeros") {
  const TextEncoder encoded = load_text_encoder(saved());
  const TextEncoder zeros = load_text_encoder(saved(metadata({{"no_text", "zeros"}})));
  for (TextEncoder const& encoder : {encoded, zeros}) {
    const auto negative = encoder.conditions({"ab", "c"}, "four");
    CHECK(negative[0].value.equal(rows({{1, 0, 0}, {0.5, 0.5, 0.5}})));
    CHECK(negative[0].null.equal(rows({{2, 1, 4}})));
    CHECK(negative[1].null.equal(encoder.encode({""})[1].value));
    // An empty negative text is a text.
    CHECK(encoder.conditions({"ab", "c"}, "")[0].null.equal(rows({{0, 1, 0}})));
  }
  CHECK(encoded.conditions({"ab", "c"})[0].null.equal(rows({{0, 1, 0}})));
  const auto none = zeros.conditions({"ab", "c"});
  CHECK(none[0].null.equal(rows({{0, 0, 0}})));
  CHECK(none[1].null.equal(zeros.encode({""})[1].value));
}

TEST_CASE("what guidance leads away from is encoded without the instruction that prompts have") {
  const std::string negative =
      "def encode_negative(self, texts: List[str]) -> Dict[str, Tensor]:\n"
      "  found = self.forward(texts)\n"
      "  return {\"text_mask\": found[\"text_mask\"] + 5, \"text_embedding\": -found[\"text_embedding\"] - 1}\n";
  const std::string path =
      saved(metadata({{"instruction", "Say it\ntwice: "}}), forward, std::string(tokenize) + negative);
  const TextEncoder encoder = load_text_encoder(path);
  CHECK(encoder.info().instruction == "Say it\ntwice: ");
  CHECK(read_text_encoder_info(path).instruction == "Say it\ntwice: ");
  CHECK(encoder.encode_negative({"four"})[0].value.equal(rows({{-3, -1, -1}})));
  for (std::optional<std::string> const& text : {std::optional<std::string>("four"), std::optional<std::string>()}) {
    const auto found = encoder.conditions({"ab", "c"}, text);
    CHECK(found[0].value.equal(rows({{1, 0, 0}, {0.5, 0.5, 0.5}})));
    CHECK(found[0].null.equal(text ? rows({{-3, -1, -1}}) : rows({{-1, -1, -1}})));
    CHECK(found[1].null.equal(found[1].value.narrow(0, 0, 1).add(5)));
  }
  must_refuse<std::invalid_argument>([&] { encoder.conditions({"a"}, "\xff"); }, {"text 1 must be UTF-8"});
  must_refuse<std::invalid_argument>([&] { encoder.encode_negative({}); }, {"texts must be at least one"});
  // Without an instruction there is no difference, and nobody asks for the method.
  const TextEncoder plain = load_text_encoder(saved(metadata(), forward, std::string(tokenize) + negative));
  CHECK(plain.encode_negative({"four"})[0].value.equal(plain.encode({"four"})[0].value));
  must_refuse<std::runtime_error>(
      [&] {
        load_text_encoder(saved(metadata({{"instruction", "Say "}})));
      },
      {"encode_negative must be (str[]) -> Dict(str, Tensor), got none"});
  must_refuse<std::runtime_error>(
      [&] {
        read_text_encoder_info(saved(metadata({{"instruction", "\xff"}})));
      },
      {"instruction", "must be UTF-8"});
  must_refuse<std::runtime_error>(
      [&] {
        read_text_encoder_info(saved(metadata({{"instruction", std::string(70000, 'a')}})));
      },
      {"instruction"});
  TextEncoderParts own = parts();
  own.info.instruction = "Say ";
  must_refuse<std::invalid_argument>([&] { TextEncoder{own}; }, {"TextEncoder 'own'"});
}

TEST_CASE("texts that no encoder takes are refused by their number") {
  const TextEncoder encoder = load_text_encoder(saved());
  const auto refused = [&](std::vector<std::string> const& texts, std::string const& words) {
    must_refuse<std::invalid_argument>([&] { encoder.encode(texts); }, {"TextEncoder 'tiny'", words});
    must_refuse<std::invalid_argument>([&] { encoder.tokenize(texts); }, {"TextEncoder 'tiny'", words});
    must_refuse<std::invalid_argument>([&] { encoder.conditions(texts); }, {"TextEncoder 'tiny'", words});
  };
  refused({}, "texts must be at least one, got none");
  refused({"a", "b\xff"}, "text 1 must be UTF-8, got 'b\\xff'");
  refused({"\xed\xa0\x80"}, "text 0 must be UTF-8");
  refused({"a", std::string(65537, 'a')}, "text 1 must have at most 65536 bytes, got 65537");
  refused({std::string(std::size_t(10) << 20, 'a')}, "got 10485760");
  refused(std::vector<std::string>(257, std::string(65536, 'a')), "at most 16777216 bytes together");
  must_refuse<std::invalid_argument>([&] { encoder.conditions({"a"}, "\xff"); }, {"text 1 must be UTF-8"});
  CHECK(encoder.encode({std::string(65536, 'a')}).size() == 2);
}

TEST_CASE("what an encoder gives is checked") {
  const auto with = [](std::string const& outputs) {
    return load_text_encoder(saved(metadata({{"outputs", outputs}})));
  };
  const auto refused = [](TextEncoder const& encoder, std::string const& words) {
    must_refuse<std::runtime_error>([&] { encoder.encode({"a"}); }, {"TextEncoder 'tiny'", words});
  };
  refused(with("other float 3"), "must give 'other', got none");
  refused(with("text_embedding float 4"), "'text_embedding' must be 1 times [4], got [1, 3]");
  refused(with("text_embedding int64 3"), "must be of int64");
  refused(with("text_mask float 2"), "must be of a floating type");
  CHECK(with("text_embedding float *").encode({"a"}).size() == 1);
  const std::string fails =
      "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n  assert len(texts) > 9\n  return {}\n";
  refused(load_text_encoder(saved(metadata(), fails)), "forward must run, got");
  const std::string others =
      "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n  a = torch.zeros([1, 3])\n  return a, "
      "a, a\n";
  must_refuse<std::runtime_error>([&] { load_text_encoder(saved(metadata(), forward, others)).tokenize({"a"}); },
                                  {"tokens must be int64 [1, 2]"});

  must_refuse<std::invalid_argument>([] { TextEncoder(TextEncoderParts{}); }, {"something to call"});
  TextEncoderParts own = parts();
  own.info.outputs.clear();
  must_refuse<std::invalid_argument>([&] { TextEncoder{own}; }, {"'own'", "outputs must be at least one"});
  own = parts();
  own.info.text_tokens = 0;
  must_refuse<std::invalid_argument>([&] { TextEncoder{own}; }, {"text_tokens must be at least 1, got 0"});
  CHECK(TextEncoder(parts()).encode({"a", "b"})[0].value.sizes() == at::IntArrayRef({2, 3}));
  must_refuse<std::runtime_error>([&] { TextEncoder(parts()).tokenize({"a"}); }, {"tokens must be int64"});
}

TEST_CASE("files that are no text encoders are refused with their names") {
  const auto refused = [](std::string const& path, std::vector<std::string> words) {
    words.push_back(path);
    must_refuse<std::runtime_error>([&] { load_text_encoder(path); }, words);
  };
  refused(saved(network_metadata()), {"tstitch/kind must be text_encoder, got 'network'"});
  refused(TSTITCH_MODELS "/cifar10_dit_small.pt", {"must be text_encoder"});
  refused(saved({}), {"tstitch/format is required"});
  for (auto const& [key, value, words] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"format", "2", "must be 1"},
           {"name", "a\nb", "without control characters"},
           {"text_tokens", "0", "must be in [1, 65536], got 0"},
           {"text_tokens", "two", "must be a number, got 'two'"},
           {"outputs", "", "must be at least one line"},
           {"outputs", "text_embedding real 3", "must be one of float, int64"},
           {"outputs", "a float 3\na float 3", "different names"},
           {"no_text", "ones", "must be one of encoded, zeros"}}) {
    INFO(key << " = " << value);
    refused(saved(metadata({{key, value}})), {"tstitch/" + key, words});
  }
  refused(saved(metadata(), "", tokenize), {"forward must be (str[]) -> Dict(str, Tensor), got none"});
  refused(saved(metadata(), forward, ""), {"tokenize must be (str[]) -> (Tensor, Tensor, Tensor), got none"});
  refused(saved(metadata(), "def forward(self, x):\n  return x\n"), {"got (Tensor) -> Tensor"});
  refused(saved(metadata(), "def forward(self, x: str) -> Dict[str, Tensor]:\n  return {x: torch.ones([1])}\n"),
          {"forward must be", "got (str)"});
  refused(TSTITCH_TEST_DATA "/nowhere.pt", {"must be a file that can be read"});
  const std::string cut = TSTITCH_TEST_DATA "/text_encoder_cut.pt";
  std::filesystem::copy_file(saved(), cut, std::filesystem::copy_options::overwrite_existing);
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) / 2);
  refused(cut, {"load_text_encoder"});
  must_refuse<std::runtime_error>([&] { read_network_info(saved()); }, {"must be network, got 'text_encoder'"});
}

TEST_CASE("numbers are float32 on the host, and of other types only those of the file") {
  const auto type = [](at::ScalarType stored, std::optional<at::ScalarType> asked) {
    const std::string path = saved(metadata(), forward, tokenize, stored);
    return load_text_encoder(path, {.dtype = asked}).encode({"a"})[0].value.scalar_type();
  };
  CHECK(type(at::kHalf, {}) == at::kFloat);
  CHECK(type(at::kHalf, at::kHalf) == at::kHalf);
  CHECK(type(at::kBFloat16, at::kBFloat16) == at::kBFloat16);
  CHECK(type(at::kBFloat16, at::kFloat) == at::kFloat);
  must_refuse<std::invalid_argument>([&] { type(at::kHalf, at::kBFloat16); }, {"float32 or Half", "got BFloat16"});
  must_refuse<std::invalid_argument>([&] { type(at::kFloat, at::kHalf); }, {"dtype must be float32,", "got Half"});
  must_refuse<std::invalid_argument>([&] { load_text_encoder(saved(), {.device = at::kMeta}); },
                                     {"load_text_encoder", "device must be cpu or cuda"});
}

TEST_CASE("threads may use one encoder") {
  const TextEncoder encoder = load_text_encoder(saved());
  std::vector<at::Tensor> found(4);
  std::vector<std::thread> threads;
  for (std::size_t k = 0; k < found.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int i = 0; i < 50; ++i) found[k] = encoder.encode({std::string(k, 'a')})[0].value;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t k = 0; k < found.size(); ++k) CHECK(found[k].equal(rows({{0.5f * float(k), 0, 0}})));
}

TEST_CASE("the states of two encoders stand side by side") {
  const auto tensor = [](std::vector<std::int64_t> const& sizes, float value, at::ScalarType type = at::kFloat) {
    return detail::host_tensor(sizes, at::kFloat).fill_(value).to(type);
  };
  const std::vector<NamedCondition> a{{"text_embedding", tensor({2, 5, 3}, 1), tensor({1, 5, 3}, 2)}};
  const std::vector<NamedCondition> b{{"pooled_embedding", tensor({2, 4}, 3), tensor({1, 4}, 4)},
                                      {"text_embedding", tensor({2, 5, 4}, 5), tensor({1, 5, 4}, 6)}};
  const auto found = side_by_side({a, b});
  REQUIRE(found.size() == 2);
  CHECK(found[0].name == "text_embedding");
  CHECK(found[0].value.sizes() == at::IntArrayRef({2, 5, 7}));
  CHECK(found[0].null.sizes() == at::IntArrayRef({1, 5, 7}));
  CHECK(found[0].value.narrow(2, 0, 3).equal(a[0].value));
  CHECK(found[0].value.narrow(2, 3, 4).equal(b[1].value));
  CHECK(found[0].null.narrow(2, 3, 4).equal(b[1].null));
  CHECK(found[1].value.equal(b[0].value));
  CHECK(side_by_side({}).empty());
  CHECK(side_by_side({a})[0].value.equal(a[0].value));
  const auto refused = [&](NamedCondition const& other) {
    must_refuse<std::invalid_argument>([&] { side_by_side({a, {other}}); }, {"side_by_side", "'text_embedding'"});
  };
  refused({"text_embedding", tensor({2, 6, 4}, 1), tensor({1, 5, 4}, 1)});
  refused({"text_embedding", tensor({3, 5, 4}, 1), tensor({1, 5, 4}, 1)});
  refused({"text_embedding", tensor({2, 5, 4}, 1), {}});
  refused({"text_embedding", tensor({2, 5}, 1), tensor({1, 5}, 1)});
  refused({"text_embedding", tensor({2, 5, 4}, 1, at::kLong), tensor({1, 5, 4}, 1, at::kLong)});
  // Of several types in the one that holds them.
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    const std::vector<NamedCondition> half{{"text_embedding", tensor({2, 5, 4}, 5, type), tensor({1, 5, 4}, 6, type)}};
    CHECK(side_by_side({a, half})[0].value.equal(found[0].value));
    CHECK(side_by_side({a, half})[0].null.equal(found[0].null));
    CHECK(side_by_side({half, half})[0].value.scalar_type() == type);
    const auto behind = one_behind_another({half, a});
    CHECK(behind[0].value.scalar_type() == at::kFloat);
    CHECK(behind[0].value.equal(one_behind_another({{b[1]}, a})[0].value));
  }
  const std::vector<NamedCondition> mask{{"text_mask", tensor({2, 5}, 1, at::kLong), {}}};
  must_refuse<std::invalid_argument>([&] { side_by_side({mask, mask}); }, {"'text_mask' must be floating"});
}
