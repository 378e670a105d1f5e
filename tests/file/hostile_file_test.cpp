// Files that lie. What loads must lie in what the file has; everything else is refused in one line that names the file.
#include <sys/stat.h>
#include <tstitch/file/condition_file.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/tstitch.hpp>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "../catch.hpp"
#include "../records.hpp"

using namespace tstitch;

namespace {

/// How many files of each kind; TSTITCH_HOSTILE_FILES asks for more.
int file_count() {
  char const* const asked = std::getenv("TSTITCH_HOSTILE_FILES");
  return asked ? std::atoi(asked) : 150;
}

std::string& named(Records& records, std::string const& name) {
  for (auto& [each, bytes] : records) {
    if (each == name) return bytes;
  }
  throw std::logic_error(name);
}

std::string path_of(std::string const& name, std::string const& bytes) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/hostile_" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::string little_endian(std::uint64_t value, int size) {
  std::string bytes;
  for (int k = 0; k < size; ++k) bytes += char(value >> (8 * k));
  return bytes;
}

namespace pickle {

std::string text(std::string const& value) {
  return "X" + little_endian(value.size(), 4) + value;
}

std::string number(std::int64_t value) {
  return "\x8a\x08" + little_endian(std::uint64_t(value), 8);
}

std::string tuple(std::vector<std::int64_t> const& values) {
  std::string bytes = "(";
  for (const std::int64_t value : values) bytes += number(value);
  return bytes + "t";
}

std::string tensor(std::int64_t elements, std::int64_t offset, std::vector<std::int64_t> const& sizes,
                   std::vector<std::int64_t> const& strides, std::string const& metadata = "") {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + "ctorch\nFloatStorage\n" + text("0") +
         text("cpu") + number(elements) + "tQ" + number(offset) + tuple(sizes) + tuple(strides) + "\x89" +
         "ccollections\nOrderedDict\n)R" + metadata + "tR";
}

std::string dict(std::string const& value) {
  return "\x80\x02}" + text("mask") + value + "s.";
}

}  // namespace pickle

namespace pickle {

/// A dict of a tensor [rows, 4] and the entry "prompts".
std::string prompted(std::int64_t rows, std::string const& prompts) {
  return "\x80\x02}(" + text("mask") + tensor(12, 0, {rows, 4}, {4, 1}) + text("prompts") + prompts + "u.";
}

/// As Python writes a list: of one value, and of several.
std::string list(std::vector<std::string> const& values) {
  if (values.size() == 1) return "]" + values[0] + "a";
  std::string bytes = "](";
  for (std::string const& value : values) bytes += value;
  return bytes + "e";
}

}  // namespace pickle

std::string condition_of(std::string const& data_pickle, std::size_t bytes = 48) {
  return archive_of({{"data.pkl", data_pickle}, {"data/0", std::string(bytes, '\1')}});
}

const std::map<std::string, std::string> metadata{{"format", "1"},
                                                  {"name", "tiny"},
                                                  {"input_channels", "3"},
                                                  {"input_height", "2"},
                                                  {"input_width", "2"},
                                                  {"prediction", "epsilon"},
                                                  {"timestep_type", "int64"},
                                                  {"noise_schedule", "cosine"},
                                                  {"num_train_timesteps", "1000"}};

/// A network of 12 weights in data/0 or constants/0 and a list that is two deep.
std::string const& model() {
  static const std::string bytes = [] {
    torch::jit::Module module("tiny");
    module.register_parameter("scale", tstitch::detail::host_tensor({3, 2, 2}, at::kFloat).fill_(0.5), false);
    module.define("def forward(self, x, t):\n  return x * self.scale\n");
    torch::jit::ExtraFilesMap files;
    for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
    std::ostringstream stream;
    module.save(stream, files);
    return stream.str();
  }();
  return bytes;
}

/// Reads all elements, so that a sanitizer sees those that lie elsewhere.
double touch(at::Tensor const& tensor, std::int64_t dimension = 0, std::int64_t offset = 0) {
  if (tensor.numel() == 0 || tensor.scalar_type() != at::kFloat) return 0;
  if (dimension == tensor.dim()) return double(tensor.const_data_ptr<float>()[offset]);
  double total = 0;
  for (std::int64_t i = 0; i < tensor.size(dimension); ++i) {
    total += touch(tensor, dimension + 1, offset + i * tensor.stride(dimension));
    if (tensor.stride(dimension) == 0) break;
  }
  return total;
}

Network load(std::string const& bytes) {
  std::istringstream stream(bytes);
  return load_torchscript(stream);
}

at::Tensor run(Network const& network) {
  const at::Tensor x = tstitch::detail::host_tensor({1, 3, 2, 2}, at::kFloat).fill_(1);
  return network(x, tstitch::detail::to_device({5}, at::kCPU), {});
}

/// @returns why it was refused; empty where it was taken
template <class Action>
std::string refusal(Action action) {
  try {
    action();
    return "";
  } catch (std::runtime_error const& error) {
    const std::string text = error.what();
    INFO(text);
    REQUIRE(text.starts_with("tstitch::"));
    REQUIRE(text.find('\n') == std::string::npos);
    REQUIRE(text.size() < 2000);
    return text;
  }
}

std::string condition_refusal(std::string const& bytes) {
  const std::string path = path_of("condition.pt", bytes);
  const std::string text = refusal([&] {
    for (NamedCondition const& each : load_conditions(path)) touch(each.value);
  });
  REQUIRE((text.empty() || text.find(path) != std::string::npos));
  return text;
}

std::string model_refusal(std::string const& bytes) {
  return refusal([&] { touch(run(load(bytes))); });
}

}  // namespace

TEST_CASE("a condition is taken where its tensors lie in their records, and else refused") {
  std::mt19937_64 random(1);
  const auto pick = [&](std::vector<std::int64_t> const& from) { return from[random() % from.size()]; };
  constexpr std::int64_t huge = std::int64_t(1) << 62;
  int taken = 0;
  for (int k = 0; k < 10 * file_count(); ++k) {
    const std::int64_t bytes = pick({0, 4, 47, 48, 48, 48, 48, 49, 96}),
                       elements = pick({12, 12, 12, 0, 24, 1000, 2000000000, huge, -1}),
                       offset = pick({0, 0, 0, 1, 11, 12, huge, -1});
    std::vector<std::int64_t> sizes, strides;
    for (std::uint64_t d = random() % 4; d > 0; --d) {
      sizes.push_back(pick({1, 2, 3, 4, 2, 3, 0, 12, 1000000, huge, -1}));
      strides.push_back(pick({1, 2, 4, 0, 3, 6, 1000000, huge, -1}));
    }
    bool fits = offset >= 0 && elements >= 0 && bytes / 4 == elements, empty = false;
    long double last = static_cast<long double>(offset), count = 4;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      fits = fits && sizes[d] >= 0 && strides[d] >= 0;
      empty = empty || sizes[d] == 0;
      last += static_cast<long double>(std::max<std::int64_t>(sizes[d], 1) - 1) * static_cast<long double>(strides[d]);
      count *= static_cast<long double>(std::max<std::int64_t>(sizes[d], 1));
    }
    fits = fits && last < 9e18L && count < 9e18L && 4 * static_cast<long double>(offset) < 9e18L &&
           (empty || last < static_cast<long double>(elements));
    INFO(k << ": " << bytes << " bytes, " << elements << " elements, offset " << offset << ", sizes "
           << tstitch::detail::shape_text(sizes) << ", strides " << tstitch::detail::shape_text(strides));
    CHECK(condition_refusal(
              condition_of(pickle::dict(pickle::tensor(elements, offset, sizes, strides)), std::size_t(bytes)))
              .empty() == fits);
    taken += fits;
  }
  CHECK(taken > 10);
}

TEST_CASE("a tensor that does not lie in its storage is refused before torch is asked to make it") {
  constexpr std::int64_t huge = std::int64_t(1) << 62;
  const auto with = [](std::int64_t offset, std::vector<std::int64_t> const& sizes,
                       std::vector<std::int64_t> const& strides) {
    return condition_refusal(condition_of(pickle::dict(pickle::tensor(12, offset, sizes, strides))));
  };
  CHECK(with(11, {}, {}).empty());
  const std::string beyond = "got 'data.pkl has a tensor that lies beyond its storage'";
  CHECK_THAT(with(12, {}, {}), ContainsSubstring(beyond));
  CHECK_THAT(with(-1, {}, {}), ContainsSubstring(beyond));
  CHECK_THAT(with(0, {2, 2}, {huge, huge}), ContainsSubstring(beyond));  // 2^63 is below 12 where it overflows
  CHECK_THAT(with(0, {3}, {4, 1}), ContainsSubstring("has a tensor with other strides than sizes"));
  CHECK_THAT(condition_refusal(condition_of(pickle::dict(pickle::tensor(12, 0, {12}, {1})) + "x")),
             ContainsSubstring("got 'data.pkl must hold one value'"));
  const auto as_module = [](std::string const& data) {
    Records records = records_of(model());
    named(records, "data.pkl") = data;
    return model_refusal(archive_of(records));
  };
  // Of which an engine would make all elements.
  CHECK_THAT(as_module(pickle::dict(pickle::tensor(12, 0, {1 << 30, 12}, {0, 1}))),
             ContainsSubstring("takes more memory than a file of this size is to"));
  CHECK_THAT(as_module("\x80\x02"
                       "ctorch\nTensor\n."),
             ContainsSubstring("must hold tensors, got 'torch.Tensor'"));
  // A scale and a zero point for each entry along an axis that the tensor has.
  const auto quantized = [](std::int64_t axis) {
    const std::string each = pickle::tensor(12, 0, {4}, {1});
    return pickle::dict("ctorch._utils\n_rebuild_qtensor\n((" + pickle::text("storage") + "ctorch\nQInt8Storage\n" +
                        pickle::text("0") + pickle::text("cpu") + pickle::number(48) + "tQ" + pickle::number(0) +
                        pickle::tuple({4, 12}) + pickle::tuple({12, 1}) + "(ctorch\nper_channel_affine\n" + each +
                        each + pickle::number(axis) + "t\x89" + "ccollections\nOrderedDict\n)RtR");
  };
  CHECK_THAT(as_module(quantized(0)), ContainsSubstring("data.pkl holds no module"));
  CHECK_THAT(as_module(quantized(1)), ContainsSubstring("has a quantized tensor with parameters of another size"));
  for (const std::int64_t axis : {2, -1}) {
    CHECK_THAT(as_module(quantized(axis)), ContainsSubstring("has a quantized tensor of another axis"));
  }
}

TEST_CASE("a pickle with changed bytes is refused, or gives what lies in the file") {
  std::mt19937_64 random(2);
  const std::string good = pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}));
  CHECK(condition_refusal(condition_of(good)).empty());
  CHECK(model_refusal(model()).empty());
  const auto changed = [&](std::string bytes) {
    for (std::uint64_t k = 1 + random() % 3; k > 0 && !bytes.empty(); --k) {
      const std::size_t position = random() % bytes.size();
      switch (random() % 4) {
        case 0: bytes[position] = char(random()); break;
        case 1: bytes[position] = char(bytes[position] ^ (1 << random() % 8)); break;
        case 2: bytes.insert(position, 1, "()]}tedulqhQRbs0\x85\x86\x87\x81N"[random() % 21]); break;
        default: bytes.erase(position, 1 + random() % 4);
      }
    }
    return bytes;
  };
  int refused = 0;
  for (int k = 0; k < 5 * file_count(); ++k) {
    INFO(k);
    refused += !condition_refusal(condition_of(changed(good))).empty();
    Records records = records_of(model());
    std::string& bytes = named(records, k % 8 ? "data.pkl" : "constants.pkl");
    bytes = changed(bytes);
    refused += !model_refusal(archive_of(records)).empty();
  }
  CHECK(refused > 5 * file_count());
}

TEST_CASE("records shorter or longer than their tensors are refused") {
  for (const std::size_t size : {0, 1, 47, 52, 1000}) {
    Records records = records_of(model());
    std::string& bytes = named(records, "data/0");
    bytes.resize(size);
    CHECK_THAT(model_refusal(archive_of(records)),
               ContainsSubstring("data.pkl says that entry 'data/0' has 12 elements of 4 bytes, got " +
                                 std::to_string(size) + " bytes"));
  }
  Records records = records_of(model());
  std::erase_if(records, [](auto const& record) { return record.first == "data/0"; });
  CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring("got 0 bytes"));
}

TEST_CASE("pickles that nest, recall or ask for too much are refused before anything is made") {
  const std::string begin = "\x80\x02", deep(200'000, ']');
  const auto both = [&](std::string const& data, std::string const& says) {
    INFO(data.substr(0, 40));
    CHECK_THAT(condition_refusal(condition_of(data)), ContainsSubstring("got 'data.pkl " + says));
    Records records = records_of(model());
    named(records, "data.pkl") = data;
    CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring("got 'data.pkl " + says));
  };
  std::string nested;
  for (int k = 0; k < 20'000; ++k) nested += "\x85";
  both(begin + ")" + nested + ".", "is nested too deeply");
  both(begin + std::string(1000, ']') + ".", "must hold one value");
  both(begin + deep + ".", "must hold one value");
  CHECK_THAT(condition_refusal(archive_of({{"data.pkl", begin + deep + "."}}, "data.pkl")),
             ContainsSubstring("is too long for its archive"));
  // Outside first: a list is filled when it is in another already.
  const std::string outer = "]q" + std::string(1, '\0'), inner = "]q\1";
  both(begin + outer + "(" + inner + "eh\1(]e0.", "fills what is no container, or one that is in another");
  both(begin + outer + "(h" + std::string(1, '\0') + "e.", "has a container in itself");
  both(begin + "]r" + little_endian(0xFFFFFFFF, 4) + ".", "memorizes a value out of order");
  both(begin + "X" + little_endian(0xFFFFFFFF, 4) + ".", "ends early");
  both(begin + "h" + std::string(1, '\7') + ".", "recalls a value that is not there");
  both(begin + "t.", "takes a value that is not there");
  both(begin + "}(Nu.", "has a key without a value");
  both(begin + "K\5)R.", "calls what is no function");
  both(begin + "ctorch\nFloatStorage\n)R.", "calls what is no function");
  both(begin + "\x8a\x09" + std::string(9, '\1') + ".", "has a number that is too large");
  both("\x80\x04N.", "must be of protocol 2");
  both("", "ends early");
  // A record of 1 MB, named 1,000 times, which torch makes 1,000 times for a module, and we once.
  std::string many = begin + "}(";
  for (int k = 0; k < 1000; ++k) many += pickle::text(std::to_string(k)) + pickle::tensor(1 << 18, 0, {1}, {1});
  many += "u.";
  const std::string data(1 << 20, '\1'), rule = "takes more memory than a file of this size is to";
  CHECK(condition_refusal(archive_of({{"data.pkl", many}, {"data/0", data}})).empty());
  Records records = records_of(model());
  named(records, "data.pkl") = many;
  named(records, "data/0") = data;
  CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring(rule));
}

TEST_CASE("expanded tensors and slices of one batch are taken as they are, and cost nothing") {
  const std::string data(4 << 20, '\1');
  std::string bytes = "\x80\x02}(";
  for (int k = 0; k < 64; ++k) {
    bytes += pickle::text("slice" + std::to_string(k)) + pickle::tensor(1 << 20, k << 14, {1, 1 << 14}, {1 << 14, 1});
  }
  bytes += pickle::text("expanded") + pickle::tensor(1 << 20, 0, {1000, 1 << 20}, {0, 1});
  std::string numbered = data;
  for (int k = 0; k < 64; ++k) {
    const float value = float(k);
    std::memcpy(numbered.data() + (std::size_t(k) << 16), &value, sizeof value);
  }
  const std::vector<NamedCondition> conditions =
      load_conditions(path_of("views.pt", archive_of({{"data.pkl", bytes + "u."}, {"data/0", numbered}})));
  REQUIRE(conditions.size() == 65);
  for (std::size_t k = 0; k < 64; ++k) {
    CHECK(conditions[k].name == "slice" + std::to_string(k));
    CHECK(conditions[k].value.sizes() == at::IntArrayRef({1, 1 << 14}));
    CHECK(conditions[k].value.const_data_ptr<float>()[0] == float(k));
    CHECK(conditions[k].value.storage().is_alias_of(conditions[0].value.storage()));
  }
  CHECK(conditions[64].value.sizes() == at::IntArrayRef({1000, 1 << 20}));
  CHECK(conditions[64].value.strides() == at::IntArrayRef({0, 1}));
  CHECK(conditions[64].value.select(0, 999).const_data_ptr<float>()[1 << 14] == 1);
}

TEST_CASE("a tensor without elements may begin beyond its storage, and conjugated ones are for networks alone") {
  // Of zeros [4, 3]: [4:, 2:].
  const std::string beyond = pickle::tensor(12, 14, {0, 1}, {3, 1});
  CHECK(condition_refusal(condition_of(pickle::dict(beyond))).empty());
  const std::string conjugated = pickle::tensor(12, 0, {3, 4}, {4, 1}, "}" + pickle::text("conj") + "\x88s");
  CHECK_THAT(condition_refusal(condition_of(pickle::dict(conjugated))),
             ContainsSubstring("has a conjugated or negated view: save its .resolve_conj().resolve_neg()"));
  CHECK_THAT(condition_refusal(condition_of(pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}, "K\1")))),
             ContainsSubstring("has a tensor without storage, offset, sizes and strides"));
  const at::Tensor complex = tstitch::detail::host_tensor({3}, at::kComplexFloat).fill_(1).conj();
  const at::Tensor empty = tstitch::detail::host_tensor({4, 4}, at::kFloat).fill_(0).narrow(0, 4, 0).narrow(1, 2, 2);
  REQUIRE(complex.is_conj());
  REQUIRE(empty.storage_offset() == 18);
  torch::jit::Module module("views");
  module.register_buffer("complex", complex);
  module.register_buffer("empty", empty);
  std::vector<std::int64_t> values(300'000);
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = std::int64_t(k) - 1000;
  module.register_attribute("values", c10::ListType::ofInts(), c10::List<std::int64_t>(values));
  module.define("def forward(self, x, t):\n  return x + self.values[-1]\n");
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
  std::ostringstream stream;
  module.save(stream, files);
  CHECK(run(load(stream.str())).equal(tstitch::detail::host_tensor({1, 3, 2, 2}, at::kFloat).fill_(299'000)));
}

TEST_CASE("what torch.save writes for other things is refused with what to save instead") {
  const auto with = [](std::string const& data) { return condition_refusal(condition_of(data)); };
  CHECK_THAT(with(pickle::dict("ctorch._utils\n_rebuild_parameter\n)R")),
             ContainsSubstring("got 'torch._utils._rebuild_parameter' of a parameter: save its .detach()"));
  CHECK_THAT(with(pickle::dict("ctorch._utils\n_rebuild_tensor_v3\n)R")),
             ContainsSubstring("save its .to(torch.float16)"));
  CHECK_THAT(with("\x80\x02"
                  "ccollections\nOrderedDict\n)R}" +
                  pickle::text("_metadata") + "Nsb."),
             ContainsSubstring("such as module.state_dict(): save dict(...) of it"));
}

TEST_CASE("archives of another byte order are refused") {
  for (const bool of_model : {false, true}) {
    for (std::string const& order : {std::string("little"), std::string("big"), std::string()}) {
      Records records = of_model ? records_of(model())
                                 : Records{{"data.pkl", pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}))},
                                           {"data/0", std::string(48, '\1')}};
      records.emplace_back("byteorder", order);
      const std::string text = of_model ? model_refusal(archive_of(records)) : condition_refusal(archive_of(records));
      if (order == "little") {
        CHECK(text.empty());
      } else
        CHECK_THAT(text, ContainsSubstring("the archive must have the byte order 'little', got '" + order + "'"));
    }
  }
}

TEST_CASE("what is no module is refused in plain words, and an ordered dict of tensors is taken") {
  Records records = records_of(model());
  named(records, "data.pkl") = pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}));
  CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring("got 'data.pkl holds no module'"));
  records = records_of(model());
  named(records, "constants.pkl") = "\x80\x02N.";
  CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring("got 'constants.pkl holds no tuple'"));
  records = records_of(model());
  CHECK_THAT(model_refusal(archive_of(records, "data/")), ContainsSubstring("got 'a compressed entry 'data/0''"));
  records.emplace_back("model.json", "{}");
  CHECK_THAT(model_refusal(archive_of(records)), ContainsSubstring("got 'an archive of torch before 1.2'"));
  const std::string ordered =
      "\x80\x02"
      "ccollections\nOrderedDict\n)R" +
      pickle::text("mask") + pickle::tensor(12, 0, {3, 4}, {4, 1}) + "s.";
  const std::vector<NamedCondition> conditions = load_conditions(path_of("ordered.pt", condition_of(ordered)));
  REQUIRE(conditions.size() == 1);
  CHECK(conditions[0].name == "mask");
  CHECK(conditions[0].value.sizes() == at::IntArrayRef({3, 4}));
}

TEST_CASE("prompts are texts of UTF-8, one for each row, or refused") {
  const auto texts = [](std::vector<std::string> const& values) {
    std::vector<std::string> pickled;
    for (std::string const& value : values) pickled.push_back(pickle::text(value));
    return pickle::list(pickled);
  };
  const auto of = [](std::int64_t rows, std::string const& prompts) {
    return path_of("prompts.pt", condition_of(pickle::prompted(rows, prompts)));
  };
  const std::vector<std::vector<std::string>> good{{"a cat"},
                                                   {""},
                                                   {"", "two\nlines"},
                                                   {"../up", "\"'`\\", std::string("a\0b\033[31m\x7f", 9)},
                                                   {"\xf0\x9f\xa6\x8a", "\xe7\x8b\x90"},
                                                   {std::string(65536, 'x'), std::string(10000, '\n')}};
  for (std::vector<std::string> const& each : good) {
    const std::string path = of(std::int64_t(each.size()), texts(each));
    CHECK(load_prompts(path) == each);
    const std::vector<NamedCondition> conditions = load_conditions(path);
    REQUIRE(conditions.size() == 1);
    CHECK(conditions[0].name == "mask");
    CHECK(conditions[0].value.size(0) == std::int64_t(each.size()));
  }

  const auto refused = [&](std::int64_t rows, std::string const& prompts) {
    const std::string path = of(rows, prompts);
    const std::string text = refusal([&] { load_prompts(path); });
    const std::string begin = "tstitch::load_prompts: '" + path + "': ";
    REQUIRE(text.starts_with(begin));
    return text.substr(begin.size());
  };
  const std::string rows = "prompts must be one for each of the tensors' rows, got ";
  CHECK(refused(2, texts({"a"})) == rows + "1 for 2");
  CHECK(refused(1, texts({"a", "b"})) == rows + "2 for 1");
  CHECK(refused(1, texts({})) == rows + "0 for 1");
  CHECK(refused(1, pickle::list({"N"})) == "prompts must be texts, got None");
  CHECK(refused(2, pickle::list({pickle::text("a"), "K\1"})) == "prompts must be texts, got Int");
  CHECK(refused(1, pickle::list({pickle::list({pickle::text("a")})})) == "prompts must be texts, got GenericList");
  CHECK(refused(1, texts({std::string(65537, 'x')})) == "prompts must be at most 65536 bytes each, got 65537");
  for (char const* const bytes : {"\xff", "\xc3", "\xed\xa0\xbd", "\xc0\xaf", "\xf4\x90\x80\x80", "a\x80"}) {
    CHECK(refused(1, texts({bytes})) == "prompts must be UTF-8, got '" + tstitch::detail::printable(bytes) + "'");
  }
  // One text of 64 KiB, named 300 times.
  std::string again = "](" + pickle::text(std::string(65536, 'x')) + "q" + std::string(1, '\0');
  for (int k = 1; k < 300; ++k) again += "h" + std::string(1, '\0');
  const std::string wide =
      "\x80\x02}(" + pickle::text("mask") + pickle::tensor(12, 0, {300}, {0}) + pickle::text("prompts") + again + "eu.";
  const std::string path = path_of("prompts.pt", condition_of(wide));
  CHECK_THAT(refusal([&] { load_prompts(path); }),
             ContainsSubstring("prompts must be at most 16777216 bytes together"));
  CHECK(load_conditions(path).size() == 1);

  const std::string not_a_dict = "must be a file of torch.save with a dict of tensors, got ";
  CHECK(refused(1, pickle::text("a cat")) == not_a_dict + "an entry 'prompts' of String");
  CHECK(refused(1, "(" + pickle::text("a cat") + "t") == not_a_dict + "an entry 'prompts' of Tuple");
  CHECK(refused(1, "}") == not_a_dict + "an entry 'prompts' of GenericDict");
  CHECK_THAT(condition_refusal(condition_of(pickle::dict("]"))), ContainsSubstring("an entry 'mask' of GenericList"));
  CHECK_THAT(condition_refusal(condition_of("\x80\x02}K\1Ns.")), ContainsSubstring("a key of Int"));

  // Without the list, with a tensor of that name, and with nothing else.
  CHECK(load_prompts(path_of("prompts.pt", condition_of(pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}))))).empty());
  const std::string tensor = of(3, pickle::tensor(12, 0, {3, 4}, {4, 1}));
  CHECK(load_prompts(tensor).empty());
  CHECK(load_conditions(tensor).size() == 2);
  const std::string alone =
      path_of("prompts.pt", condition_of("\x80\x02}" + pickle::text("prompts") + texts({"a"}) + "s."));
  CHECK(load_conditions(alone).empty());
  CHECK_THAT(refusal([&] { load_prompts(alone); }), ContainsSubstring(rows + "1 for 0"));
}

TEST_CASE("code that nests too deeply is refused before torch parses it, and torch bears what is taken") {
  const auto repeated = [](std::string const& text, int count) {
    std::string all;
    for (int k = 0; k < count; ++k) all += text;
    return all;
  };
  const auto with = [&](std::string const& code) {
    Records records = records_of(model());
    for (auto& [name, bytes] : records) {
      if (name.ends_with(".py")) bytes += code;
    }
    return model_refusal(archive_of(records));
  };
  const auto returning = [](std::string const& expression) {
    return "  def g(self, x: bool, n: int) -> bool:\n    return " + expression + "\n";
  };
  const std::string deep = "its code is nested too deeply";
  const std::vector<std::array<std::string, 3>> kinds{{"", "(", ""},
                                                      {"", "not ", "x"},
                                                      {"", "-", "n"},
                                                      {"", "~", "n"},
                                                      {"n", "**n", ""},
                                                      {"n", "+n", ""},
                                                      {"n", " < n", ""},
                                                      {"n", ".a", ""},
                                                      {"n", "[0]", ""},
                                                      {"n", "()", ""},
                                                      {"", "x if x else ", "x"},
                                                      {"x", " if x else x", ""},
                                                      {"", "lambda x: ", "x"},
                                                      {"", "await ", "x"},
                                                      {"x", " and x", ""},
                                                      {"x", " or x", ""},
                                                      {"", "*", "n"},
                                                      {"", "\\\nnot ", "x"},
                                                      {"(", "\nnot ", "x)"}};
  for (auto const& [before, each, after] : kinds) {
    INFO(each);
    CHECK_THAT(with(returning(before + repeated(each, 100'000) + after)), ContainsSubstring(deep));
    // Whatever torch says to it, it comes back.
    CHECK_THAT(with(returning(before + repeated(each, 250) + after)), !ContainsSubstring(deep));
  }
  CHECK(with(returning(repeated("not ", 1900) + "x")).empty());
  CHECK(with(returning(repeated("not (", 250) + repeated("not ", 900) + "x" + repeated(")", 250))).empty());
  // What brackets in strings close is not open.
  const std::string open = repeated("(", 99'000), close = repeated(")", 99'000);
  for (const std::string quote : {"'", "\"", "'''", "\"\"\""}) {
    CHECK_THAT(with(returning(quote + "\\" + quote + close + quote + " == " + open + "x" + close)),
               ContainsSubstring(deep));
  }
  CHECK_THAT(with("\n# " + close + returning(open + "x" + close)), ContainsSubstring(deep));
  CHECK_THAT(with("  def g(self, x):\n    # type: " + open + "bool" + close + " -> bool\n    return x\n"),
             ContainsSubstring(deep));
  CHECK(with("\n# " + open + "\n").empty());
  CHECK_THAT(with(returning(")(x")), ContainsSubstring("its code closes a bracket that is not open"));
  CHECK_THAT(with(returning("'x")), ContainsSubstring("its code has a string without an end"));
  std::string blocks = "  def g(self, x: bool) -> bool:\n", alternatives = blocks + "    if x:\n      pass\n";
  for (std::size_t k = 0; k < 3000; ++k) {
    blocks += std::string(4 + k, ' ') + "if x:\n";
    alternatives += "    elif x:\n      pass\n";
  }
  CHECK_THAT(with(blocks + std::string(4000, ' ') + "pass\n    return x\n"), ContainsSubstring(deep));
  CHECK_THAT(with(alternatives + "    return x\n"), ContainsSubstring(deep));
  // Long is not deep.
  CHECK(with("  def g(self) -> List[int]:\n    return [" + repeated("1, ", 20'000) + "1]\n").empty());
}

TEST_CASE("every changed bit of the weights is noticed, and every other one, or it changes nothing") {
  const std::string small_path = TSTITCH_MODELS "/cifar10_dit_small.pt";
  std::ifstream file(small_path, std::ios::binary);
  std::string large{std::istreambuf_iterator<char>(file), {}};
  std::mt19937_64 random(3);
  std::istringstream first(large);
  load_torchscript(first);
  int noticed = 0, flips = 0;
  const tstitch::detail::Archive archive(tstitch::detail::open_file({"the_test", "a file"}, small_path));
  std::vector<std::pair<std::uint64_t, std::uint64_t>> weights;
  for (auto const& [name, record] : archive.records()) {
    if (name.starts_with("data/")) weights.emplace_back(record.begin, record.size);
  }
  for (; flips < file_count(); ++flips) {
    const auto [start, size] = weights[random() % weights.size()];
    char& byte = large[start + random() % size];
    const char changed = char(1 << random() % 8);
    byte = char(byte ^ changed);
    std::istringstream stream(large);
    const std::string text = refusal([&] { load_torchscript(stream); });
    noticed += text.find("is damaged: its checksum differs") != std::string::npos;
    byte = char(byte ^ changed);
  }
  CHECK(noticed == flips);

  const at::Tensor expected = run(load(model()));
  const std::string name = load(model()).info().name;
  int refused = 0;
  for (int k = 0; k < 4 * file_count(); ++k) {
    std::string damaged = model();
    const std::size_t position = random() % damaged.size();
    damaged[position] = char(damaged[position] ^ (1 << random() % 8));
    INFO(position);
    refused += !refusal([&] {
                  const Network network = load(damaged);
                  REQUIRE(network.info().name == name);
                  REQUIRE(run(network).equal(expected));
                }).empty();
  }
  CHECK(refused > 0);
}

TEST_CASE("every truncation is refused by name") {
  const std::string condition = condition_of(pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1})));
  for (std::size_t size = 0; size < condition.size(); size += 3) {
    INFO(size);
    CHECK_FALSE(condition_refusal(condition.substr(0, size)).empty());
  }
  for (std::size_t size = 0; size < model().size(); size += 1 + model().size() / std::size_t(2 * file_count())) {
    const std::string path = path_of("truncated.pt", model().substr(0, size));
    CHECK_THAT(refusal([&] { load_torchscript(path); }),
               ContainsSubstring("'" + path + "': must be a TorchScript file, got "));
    CHECK_THAT(refusal([&] { read_network_info(path); }), ContainsSubstring(path));
  }
}

TEST_CASE("archives with entries that are twice there, overlap or say two things are refused") {
  const std::string good = condition_of(pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1})));
  const auto with = [&](std::string const& from, std::string const& to, bool all) {
    std::string bytes = good;
    for (std::size_t at = bytes.find(from); at != std::string::npos;
         at = all ? bytes.find(from, at + 1) : std::string::npos) {
      bytes.replace(at, from.size(), to);
    }
    return condition_refusal(bytes);
  };
  CHECK(with("nothing", "nothing", true).empty());
  CHECK_THAT(with("archive/data/0", "archive/dat\1/0", true),
             ContainsSubstring("must have a name that torch would give it"));
  CHECK_THAT(with("archive/data/0", "archive/data/1", false), ContainsSubstring("has a header that says otherwise"));
  CHECK_THAT(with("archive/data/0", "archive/../../", true),
             ContainsSubstring("must have a name that torch would give it"));
  CHECK_THAT(with("archive/data/0", "archive/\033[31m\007", true), ContainsSubstring("\\x1b[31m"));
  const std::string twice = archive_of({{"data.pkl", "a"}, {"data/0", "b"}, {"data/1", "c"}, {"DATA/x", "d"}});
  std::string renamed = twice;
  for (std::size_t at; (at = renamed.find("archive/DATA/x")) != std::string::npos;)
    renamed.replace(at, 14, "archive/DATA/1");
  CHECK_THAT(condition_refusal(renamed), ContainsSubstring("is there twice"));
  // The second entry's header is the first's.
  std::string overlapping = good;
  const std::size_t directory = overlapping.find("PK\1\2"), second = overlapping.find("PK\1\2", directory + 1);
  overlapping.replace(second + 42, 4, overlapping.substr(directory + 42, 4));
  CHECK_THAT(condition_refusal(overlapping), ContainsSubstring("has a header that says otherwise"));
  CHECK_THAT(condition_refusal(good + "x"), ContainsSubstring("no zip archive, or one that is cut off"));
}

TEST_CASE("each entry is whole, readable and in the archive's folder") {
  const std::string good = condition_of(pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1})));
  // The headers of data/0: its own, and that in the directory. The name comes after 30 bytes of one, 46 of the other.
  const std::size_t local = good.find("archive/data/0") - 30, listed = good.rfind("archive/data/0") - 46;
  REQUIRE(good.substr(local, 4) == "PK\3\4");
  REQUIRE(good.substr(listed, 4) == "PK\1\2");
  using Changes = std::vector<std::pair<std::size_t, std::string>>;
  const auto with = [&](Changes const& changes) {
    std::string bytes = good;
    for (auto const& [position, value] : changes) bytes.replace(position, value.size(), value);
    return condition_refusal(bytes);
  };
  const char flags = good[listed + 8];
  CHECK(with({}).empty());
  CHECK_THAT(with({{local + 14, "\1\2\3\4"}}),
             ContainsSubstring("'archive/data/0' of the archive has a header that says"));
  CHECK_THAT(with({{local + 6, {char(flags | 1)}}, {listed + 8, {char(flags | 1)}}}),
             ContainsSubstring("'archive/data/0' of the archive must be stored or deflated"));
  CHECK_THAT(with({{local + 22, "\x2F"}, {listed + 24, "\x2F"}}),
             ContainsSubstring("'archive/data/0' of the archive has another size than it says"));
  CHECK_THAT(with({{local + 30, "b"}, {listed + 46, "b"}}),
             ContainsSubstring("'brchive/data/0' of the archive is outside the archive's folder"));
  CHECK_THAT(with({{good.size() - 1, "\1"}}), ContainsSubstring("no zip archive, or one that is cut off"));
  CHECK_THAT(condition_refusal(archive_of({{"data.pkl", std::string(std::size_t(17) << 20, '\0')}}, "data.pkl")),
             ContainsSubstring("entry 'data.pkl' of the archive is compressed and larger than 16 MiB"));
}

TEST_CASE("an archive is intact where every checksum is right, also of what is read in pieces") {
  std::string bytes = archive_of({{"small", "abc"}, {"large", std::string((std::size_t(32) << 20) + 1000, 'x')}});
  const auto refused = [&] {
    const std::string path = path_of("intact.pt", bytes);
    return message_of<std::exception>([&] {
      tstitch::detail::Archive(tstitch::detail::open_file({"the_test", "a file"}, path)).require_intact();
    });
  };
  CHECK(refused() == "nothing was thrown");
  bytes[bytes.find("xxx") + (std::size_t(32) << 20) + 500] = 'y';
  CHECK_THAT(refused(), ContainsSubstring("entry 'large' of the archive is damaged: its checksum differs"));
}

TEST_CASE("entries that torch reads by itself are not inflated, and are small") {
  const Records condition{{"data.pkl", pickle::dict(pickle::tensor(12, 0, {3, 4}, {4, 1}))},
                          {"data/0", std::string(48, '\1')}};
  for (const std::string name : {".DATA/serialization_ID", ".data/other", ".data/version", "version"}) {
    for (const bool of_model : {false, true}) {
      const auto refuse = of_model ? model_refusal : condition_refusal;
      Records with = of_model ? records_of(model()) : condition;
      with.emplace_back(name, std::string(std::size_t(64) << 20, '0'));
      const std::string bomb = archive_of(with, name);
      REQUIRE(bomb.size() < 1'000'000);
      const std::string rule = name + "' of the archive is compressed or larger than 4 KiB";
      CHECK_THAT(refuse(bomb), ContainsSubstring(rule));
      with.back().second.resize(5000);
      CHECK_THAT(refuse(archive_of(with)), ContainsSubstring(rule));
    }
  }
}

TEST_CASE("the reason of an error is one line that can be shown") {
  const auto reason = [](char const* text) { return tstitch::detail::reason(std::runtime_error(text)); };
  CHECK(reason("\n \r\n\033[31mfirst\nsecond\n") == "\\x1b[31mfirst");
  CHECK(reason("The following operation failed in the TorchScript interpreter.\ncode\nlast\n\n") == "last");
  CHECK(reason("\n\n").empty());
  CHECK(reason("").empty());
}

TEST_CASE("only regular files are opened") {
  const std::string pipe = path_of("pipe", "");
  std::filesystem::remove(pipe);
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  for (std::string const& path : {pipe, std::string("/dev/zero"), std::string("/dev/null")}) {
    const std::string says = "'" + path + "': must be a ", got = ", got a pipe, a socket or a device";
    CHECK(refusal([&] { load_torchscript(path); }) == "tstitch::load_torchscript: " + says + "TorchScript file" + got);
    CHECK(refusal([&] { load_decoder(path); }) == "tstitch::load_torchscript: " + says + "TorchScript file" + got);
    CHECK(refusal([&] { load_conditions(path); }) ==
          "tstitch::load_conditions: " + says + "file of torch.save with a dict of tensors" + got);
    CHECK(refusal([&] { read_network_info(path); }) ==
          "tstitch::read_network_info: " + says + "TorchScript file or an AOTInductor package" + got);
  }
  std::filesystem::remove(pipe);
}

TEST_CASE("metadata that inflates is not read, or refused by its size") {
  Records records = records_of(model());
  records.emplace_back("extra/tstitch/unknown", std::string(std::size_t(100) << 20, ' '));
  const std::string large = archive_of(records, "extra/");
  CHECK(large.size() < 1'000'000);
  CHECK(model_refusal(large).empty());
  const auto with = [&](std::string const& key, std::size_t size) {
    Records changed = records_of(model());
    if (key == "name") std::erase_if(changed, [](auto const& record) { return record.first == "extra/tstitch/name"; });
    changed.emplace_back("extra/tstitch/" + key, std::string(size, 'x'));
    return model_refusal(archive_of(changed, "extra/"));
  };
  const std::string key = "tstitch::read_network_info: the stream: tstitch/";
  CHECK(with("name", 201) == key + "name must have at most 200 bytes, got 201");
  CHECK(with("name", 200).empty());
  CHECK(with("class_names", 5'000'000) == key + "class_names must have at most 4194304 bytes, got 5000000");
  CHECK(with("license", 1'200'000) == key + "license must have at most 65536 bytes, got 1200000");
}

TEST_CASE("a checkpoint is told from a network, in one sentence that helps") {
  const std::string state =
      "\x80\x02}" + pickle::text("x_embedder.proj.weight") + pickle::tensor(12, 0, {3, 4}, {4, 1}) + "s.";
  const std::string header = R"({"x_embedder.proj.weight":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]}})";
  for (auto const& [format, bytes] : std::vector<std::pair<std::string, std::string>>{
           {"torch.save", condition_of(state)},
           {"an old torch.save", state},
           {"safetensors", little_endian(header.size(), 8) + header + std::string(48, '\0')}}) {
    const std::string path = path_of("checkpoint.pt", bytes);
    CHECK(refusal([&] { load_torchscript(path); }) ==
          "tstitch::load_torchscript: '" + path + "': must be a TorchScript file, got a DiT checkpoint (" + format +
              "), which has weights alone: export it with examples/export/export_dit.py");
    CHECK_THAT(refusal([&] { read_network_info(path); }), ContainsSubstring("got a DiT checkpoint (" + format + ")"));
  }
  CHECK_THAT(refusal([&] { load(condition_of("\x80\x02}.")); }),
             ContainsSubstring("got a checkpoint (torch.save), which has weights alone: export it with"));
  Records plain = records_of(model());
  std::erase_if(plain, [](auto const& record) { return record.first.starts_with("extra/"); });
  CHECK(refusal([&] { load(archive_of(plain)); }) ==
        "tstitch::read_network_info: the stream: must carry tstitch metadata (see metadata.hpp), got a file without "
        "any, which looks like any TorchScript");
  plain.emplace_back("archive_format", "pt2");
  CHECK(refusal([&] { load(archive_of(plain)); }) ==
        "tstitch::load_torchscript: the stream: must be a TorchScript file, got a package of torch.export (see "
        "aot_inductor.hpp)");
}
