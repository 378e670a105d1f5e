// Encoded prompts in a folder: what is taken from it, what is not, and what becomes of the folder. Several processes at
// once, and files in Python, are tried in tests/export/text_encoder_test.py.

#include <tstitch/file/prompt_cache.hpp>

#include <sys/resource.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

namespace fs = std::filesystem;

/// Other numbers at every call, but for the last, which is the length of the text, and negative for encode_negative.
constexpr char forward[] =
    "def rows(self, texts: List[str], sign: int) -> Dict[str, Tensor]:\n"
    "  rows: List[Tensor] = []\n"
    "  mask: List[List[int]] = []\n"
    "  for k in range(len(texts)):\n"
    "    rows.append(torch.cat([torch.rand([3]), torch.full([1], float(sign * len(texts[k])))]))\n"
    "    mask.append([1, len(texts[k])])\n"
    "  return {\"text_mask\": torch.tensor(mask), \"text_embedding\": torch.stack(rows).to(self.scale)}\n"
    "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
    "  return self.rows(texts, 1)\n"
    "def encode_negative(self, texts: List[str]) -> Dict[str, Tensor]:\n"
    "  return self.rows(texts, -1)\n"
    "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
    "  n = len(texts)\n"
    "  ids = torch.randint(1000000, [n, 2])\n"
    "  return ids, torch.ones_like(ids), torch.full([n], 5)\n";

std::string scratch(std::string const& name) {
  fs::create_directories(TSTITCH_TEST_DATA "/prompt_cache");
  return TSTITCH_TEST_DATA "/prompt_cache/" + name;
}

/// With what is in it. Not std::filesystem::remove_all, which crashes in programs that link torch 2.11: libtorch.so
/// exports a half of one.
void remove_folder(fs::path const& path) {
  std::error_code none;
  std::vector<fs::path> inside;
  if (fs::is_directory(path, none)) {
    for (auto const& each : fs::directory_iterator(path)) inside.push_back(each.path());
  }
  for (fs::path const& each : inside) remove_folder(each);
  fs::remove(path, none);
}

/// A folder that is not there.
std::string fresh(std::string const& name) {
  remove_folder(scratch(name));
  return scratch(name);
}

std::string saved(Metadata texts = {}, double scale = 1, at::ScalarType type = at::kFloat,
                  std::string const& name = "encoder.pt") {
  texts.merge(Metadata{{"format", "1"},
                       {"kind", "text_encoder"},
                       {"name", "random"},
                       {"text_tokens", "2"},
                       {"outputs", "text_embedding float 4\ntext_mask int64 2"}});
  torch::jit::Module module("random");
  module.register_parameter("scale", detail::host_tensor({1}, at::kFloat).fill_(scale).to(type), false);
  module.define(forward);
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : texts) files["tstitch/" + key] = value;
  module.save(scratch(name), files);
  return scratch(name);
}

/// A cache that notes what it says.
struct Noted {
  explicit Noted(std::string const& folder, std::uint64_t most_bytes = std::uint64_t(1) << 30)
      : cache(folder, {.most_bytes = most_bytes, .warn = [this](std::string const& line) { lines.push_back(line); }}) {}
  Noted(Noted const&) = delete;
  std::vector<std::string> lines = {};
  PromptCache cache;
};

std::vector<std::string> files_of(std::string const& folder) {
  std::vector<std::string> found;
  for (auto const& each : fs::directory_iterator(folder)) found.push_back(each.path().string());
  return found;
}

bool same(std::vector<NamedCondition> const& a, std::vector<NamedCondition> const& b) {
  bool equal = a.size() == b.size();
  for (std::size_t k = 0; equal && k < a.size(); ++k) {
    equal = a[k].name == b[k].name && a[k].value.equal(b[k].value) && a[k].null.defined() == b[k].null.defined() &&
            (!a[k].null.defined() || a[k].null.equal(b[k].null));
  }
  return equal;
}

std::string contents(std::string const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void replace(std::string const& path, std::string const& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), std::streamsize(bytes.size()));
}

const std::vector<std::string> odd_texts{"a fox",
                                         "",
                                         std::string("a\0b", 3),
                                         "../../etc",
                                         "a\nb\t\"'\\",
                                         "\xe7\x8c\xab ü",
                                         "a fox ",
                                         std::string(65536, 'x'),
                                         "\x01\x7f\xef\xbf\xbf",
                                         "--prompt"};

}  // namespace

TEST_CASE("what was encoded once is taken from the folder, bit for bit, and without the weights") {
  for (std::string const instruction : {"", "Say it twice: "}) {
    const std::string path = saved(instruction.empty() ? Metadata{} : Metadata{{"instruction", instruction}});
    const std::string folder = fresh("hits") + "/in/folders";
    Noted first(folder);
    const TextEncoder encoder = first.cache.load(path);
    CHECK(encoder.info().name == "random");
    const auto missed = encoder.conditions(odd_texts, "blurry");
    const TextTokens tokens = encoder.tokenize(odd_texts);
    CHECK(files_of(folder).size() == odd_texts.size() + 1);
    CHECK(same(encoder.conditions(odd_texts, "blurry"), missed));
    for (std::size_t k = 0; k < odd_texts.size(); ++k) {
      const double length = missed[0].value.select(0, std::int64_t(k)).select(0, 3).item().toDouble();
      CHECK(length == double(odd_texts[k].size()));
    }
    CHECK(missed[0].null.select(1, 3).item().toDouble() == (instruction.empty() ? 6 : -6));

    // Whose weights cannot be read any more.
    std::string bytes = contents(path);
    const std::size_t record = bytes.find("/data/0");
    REQUIRE(record != std::string::npos);
    for (std::size_t k = record + 7; k < record + 80; ++k)
      bytes[k] = char(bytes[k] ^ (bytes.compare(k, 4, "\x00\x00\x80\x3f", 4) == 0 ? 1 : 0));
    replace(path, bytes);
    CHECK_THROWS(load_text_encoder(path));
    Noted second(folder);
    const TextEncoder without = second.cache.load(path);
    CHECK(same(without.conditions(odd_texts, "blurry"), missed));
    const TextTokens again = without.tokenize(odd_texts);
    CHECK(again.ids.equal(tokens.ids));
    CHECK(again.mask.equal(tokens.mask));
    CHECK(again.cut.equal(tokens.cut));
    // In another order, and twice.
    const auto some = without.encode({odd_texts[4], odd_texts[1], odd_texts[4]});
    CHECK(some[0].value.select(0, 0).equal(missed[0].value.select(0, 4)));
    CHECK(some[0].value.select(0, 1).equal(missed[0].value.select(0, 1)));
    CHECK(some[0].value.select(0, 2).equal(missed[0].value.select(0, 4)));
    CHECK_THROWS(without.encode({"a new text"}));
    // A prompt is not what guidance leads away from where an instruction is put before the one.
    if (instruction.empty()) {
      CHECK(without.encode({"blurry"})[0].value.equal(missed[0].null));
    } else {
      CHECK_THROWS(without.encode({"blurry"}));
    }
    CHECK(first.lines.empty());
    CHECK(second.lines.empty());
  }
}

TEST_CASE("no text is zeros with a cache, too") {
  const TextEncoder encoder = PromptCache(fresh("zeros")).load(saved({{"no_text", "zeros"}}));
  CHECK(encoder.conditions({"a"})[0].null.abs().sum().item().toDouble() == 0);
  CHECK(encoder.conditions({"a"}, "")[0].null.abs().sum().item().toDouble() > 0);
  CHECK(same(encoder.conditions({"a"}, ""), encoder.conditions({"a"}, "")));
}

TEST_CASE("texts that no encoder takes are refused as without a cache") {
  const TextEncoder encoder = PromptCache(fresh("refused")).load(saved());
  CHECK_THROWS_AS(encoder.encode({"\xff"}), std::invalid_argument);
  CHECK_THROWS_AS(encoder.encode({}), std::invalid_argument);
  CHECK_THROWS_AS(encoder.tokenize({std::string(65537, 'a')}), std::invalid_argument);
  CHECK(files_of(scratch("refused")).empty());
}

TEST_CASE("another file, type or text has entries of its own") {
  const std::string folder = fresh("others");
  Noted noted(folder);
  const auto encoded = [&](std::string const& path, TorchScriptOptions const& options = {}) {
    return noted.cache.load(path, options).encode({"a fox"})[0].value;
  };
  const at::Tensor first = encoded(saved());
  CHECK(encoded(saved()).equal(first));  // the same bytes again
  CHECK_FALSE(encoded(saved({}, 2)).equal(first));
  CHECK_FALSE(encoded(saved({{"name", "other"}})).equal(first));
  const std::string halves = saved({}, 1, at::kBFloat16);
  const at::Tensor exact = encoded(halves), rounded = encoded(halves, {.dtype = at::kBFloat16});
  CHECK(exact.scalar_type() == at::kFloat);
  CHECK(rounded.scalar_type() == at::kBFloat16);
  CHECK(encoded(halves).equal(exact));
  CHECK(encoded(halves, {.dtype = at::kFloat}).equal(exact));
  CHECK(encoded(halves, {.dtype = at::kBFloat16}).equal(rounded));
  CHECK(files_of(folder).size() == 5);
  CHECK(noted.lines.empty());
}

TEST_CASE("a damaged entry is said, encoded anew, and not used") {
  const std::string folder = fresh("damaged"), path = saved();
  Noted noted(folder);
  const TextEncoder encoder = noted.cache.load(path);
  at::Tensor before = encoder.encode({"a fox"})[0].value;
  const std::string entry = files_of(folder).at(0), whole = contents(entry);
  const auto must_encode_anew = [&](std::size_t lines) {
    noted.lines.clear();
    const at::Tensor now = encoder.encode({"a fox"})[0].value;
    CHECK_FALSE(now.equal(before));
    CHECK(noted.lines.size() == lines);
    for (std::string const& line : noted.lines) {
      CHECK_THAT(line, ContainsSubstring(fs::path(entry).filename().string()));
      CHECK(line.find('\n') == std::string::npos);
    }
    CHECK(encoder.encode({"a fox"})[0].value.equal(now));  // it is whole again
    before = now;
  };
  // Wherever a bit is another; but for padding, which says nothing.
  const at::Tensor kept = load_conditions(entry)[0].value;
  std::size_t noticed = 0;
  for (std::size_t place = 0; place < whole.size(); place += 13) {
    std::string bytes = whole;
    bytes[place] = char(bytes[place] ^ 4);
    replace(entry, bytes);
    noted.lines.clear();
    const at::Tensor now = encoder.encode({"a fox"})[0].value;
    if (now.equal(kept)) {
      CHECK(noted.lines.empty());
    } else {
      CHECK(noted.lines.size() == 1);
      ++noticed;
    }
  }
  CHECK(noticed > 20);
  replace(entry, whole);
  before = encoder.encode({"a fox"})[0].value;
  CHECK(before.equal(kept));
  for (const std::size_t size :
       {std::size_t(0), std::size_t(1), std::size_t(100), whole.size() / 2, whole.size() - 1}) {
    replace(entry, whole.substr(0, size));
    must_encode_anew(1);
  }
  // Of another text, or of an encoder with other outputs.
  save_conditions(entry, load_conditions(entry), {"a dog"});
  must_encode_anew(0);
  save_conditions(entry, {{"text_embedding", kept.narrow(1, 0, 2), {}}}, {"a fox"});
  must_encode_anew(1);
  fs::remove(entry);
  fs::create_directory(entry);
  noted.lines.clear();
  encoder.encode({"a fox"});
  CHECK(noted.lines.size() == 2);  // it cannot be written, either
}

TEST_CASE("a folder that takes nothing does not stop the work") {
  const std::string folder = fresh("full");
  Noted noted(folder);
  const TextEncoder encoder = noted.cache.load(saved());
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 100;
  setrlimit(RLIMIT_FSIZE, &small);
  const auto found = encoder.encode({"a fox"});
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(found.size() == 2);
  REQUIRE(noted.lines.size() == 1);
  CHECK_THAT(noted.lines[0], ContainsSubstring("is not kept") && ContainsSubstring("must fit on the disk"));
  CHECK(files_of(folder).empty());
  remove_folder(folder);
  CHECK(encoder.encode({"a fox"}).size() == 2);
  CHECK(noted.lines.size() == 2);

  replace(fresh("file"), "a file");
  CHECK_THROWS_AS(PromptCache(scratch("file")), std::runtime_error);
  CHECK_THROWS_AS(PromptCache(scratch("file") + "/in"), std::runtime_error);
  CHECK_THROWS_AS(PromptCache(""), std::invalid_argument);
  CHECK_THROWS_AS(PromptCache(fresh("nothing")).load(scratch("no_such_file")), std::runtime_error);
}

TEST_CASE("the folder keeps within its size: what nobody asked for the longest goes first") {
  const std::string folder = fresh("bounded"), path = saved();
  const TextEncoder measured = PromptCache(folder).load(path);
  measured.encode({"0"});
  const std::uint64_t one = fs::file_size(files_of(folder).at(0));
  remove_folder(folder);

  Noted noted(folder, 3 * one);
  const TextEncoder encoder = noted.cache.load(path);
  replace(folder + "/notes.txt", std::string(1000, 'x'));  // of somebody else
  const std::string left = folder + "/0123456789abcdef-0123456789abcdef.pt.part";
  replace(left, "what an ended writer has left");
  const std::string young = left + "1";
  replace(young, "what a writer is at");
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(left, now - std::chrono::hours(2));
  const auto entries = [&] {
    std::vector<std::string> found;
    for (std::string const& file : files_of(folder)) {
      if (file.ends_with(".pt")) found.push_back(file);
    }
    return found;
  };
  std::vector<at::Tensor> first;
  for (int k = 0; k < 3; ++k) {
    first.push_back(encoder.encode({std::to_string(k)})[0].value);
    const auto all = entries();
    CHECK(all.size() == std::size_t(k + 1));
    for (std::string const& file : all) {  // all older than before
      fs::last_write_time(file, fs::last_write_time(file) - std::chrono::minutes(1));
    }
  }
  CHECK_FALSE(fs::exists(left));
  CHECK(fs::exists(young));
  CHECK(encoder.encode({"0"})[0].value.equal(first[0]));  // asked for, and so the newest
  encoder.encode({"3"});
  CHECK(entries().size() == 3);
  CHECK(encoder.encode({"0"})[0].value.equal(first[0]));
  CHECK(encoder.encode({"2"})[0].value.equal(first[2]));
  CHECK_FALSE(encoder.encode({"1"})[0].value.equal(first[1]));
  CHECK(fs::file_size(folder + "/notes.txt") == 1000);
  CHECK(noted.lines.empty());
  // An entry that is larger than all may be is kept until the next.
  Noted none(fresh("none"), 0);
  const TextEncoder one_at_a_time = none.cache.load(path);
  one_at_a_time.encode({"0", "1"});
  CHECK(files_of(scratch("none")).size() == 1);
}

TEST_CASE("an encoder whose file has changed meanwhile is not used") {
  const TextEncoder encoder = PromptCache(fresh("changed")).load(saved());
  saved({}, 2);
  const std::string message = message_of<std::runtime_error>([&] { encoder.encode({"a"}); });
  CHECK_THAT(message, ContainsSubstring("must stay as it is while it is used"));
  CHECK(files_of(scratch("changed")).empty());
}

TEST_CASE("threads may use one cache at the same time") {
  const std::string path = saved();
  Noted noted(fresh("threads"));
  const TextEncoder encoder = noted.cache.load(path);
  std::vector<std::vector<double>> lengths(4);
  {
    std::vector<std::jthread> threads;
    for (std::vector<double>& mine : lengths) {
      threads.emplace_back([&encoder, &mine] {
        for (std::size_t k = 0; k < 20; ++k) {
          const at::Tensor found = encoder.encode({std::string(k % 7, 'a')})[0].value;
          mine.push_back(found.select(1, 3).item().toDouble());
        }
      });
    }
  }
  for (std::vector<double> const& mine : lengths) {
    REQUIRE(mine.size() == 20);
    for (std::size_t k = 0; k < 20; ++k) CHECK(mine[k] == double(k % 7));
  }
  CHECK(files_of(scratch("threads")).size() == 7);
  CHECK(noted.lines.empty());
}
