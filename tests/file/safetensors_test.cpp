// Weights in safetensors files: the same bits as from the TorchScript file of the same weights, and everything that
// such a file, an index or a description may say wrongly is refused by name.
#include <sys/resource.h>
#include <tstitch/file/fingerprint.hpp>
#include <tstitch/file/safetensors.hpp>
#include <tstitch/load.hpp>
#include <tstitch/tstitch.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "../safetensors.hpp"

using namespace tstitch;
using safetensors::description_of;
using safetensors::file_of;
using safetensors::prefixed;
using safetensors::Tensors;

namespace {

const std::string script = TSTITCH_MODELS "/cifar10_dit_small.pt";

/// A folder, whose files each test writes anew.
struct Scratch {
  explicit Scratch(std::string const& name) : path(std::filesystem::path(TSTITCH_TEST_DATA) / "safetensors" / name) {
    std::filesystem::create_directories(path);
  }

  std::string operator/(std::string const& name) const { return (path / name).string(); }
  std::string write(std::string const& name, std::string const& bytes) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
    return *this / name;
  }

  std::filesystem::path path;
};

at::Tensor asked(Network const& network) {
  const at::Tensor x = detail::host_tensor({3, 3, 32, 32}, at::kFloat);
  for (std::int64_t k = 0; k < x.numel(); ++k) x.mutable_data_ptr<float>()[k] = float((k * 7919) % 2001) / 1000 - 1;
  return network(x, detail::to_device({0, 500, 999}, at::kCPU),
                 {.labels = detail::to_device({0, 5, 10}, at::kCPU), .host_labels = {0, 5, 10}});
}

/// Two halves of the tensors.
std::pair<Tensors, Tensors> halves(Tensors const& all) {
  std::pair<Tensors, Tensors> found;
  for (auto const& [name, tensor] : all) (name < "blocks.3" ? found.first : found.second).emplace(name, tensor);
  return found;
}

std::string index_of(std::vector<std::pair<std::string, Tensors>> const& shards) {
  nlohmann::json index{{"metadata", {{"total_size", 5}, {"note", nullptr}}}};
  for (auto const& [file, tensors] : shards) {
    for (auto const& [name, tensor] : tensors) index["weight_map"][name] = file;
  }
  return index.dump();
}

template <class Action>
std::string refusal(Action const& action) {
  try {
    action();
  } catch (std::runtime_error const& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("a network of safetensors has the bits of its TorchScript file, however its weights lie") {
  const Scratch scratch("ways");
  const auto texts = safetensors::texts_of(script);
  for (const at::ScalarType stored : {at::kFloat, at::kHalf, at::kDouble}) {
    const Tensors tensors = safetensors::tensors_of(script, stored);
    const auto [first, second] = halves(tensors);
    scratch.write("all.safetensors", file_of(tensors, texts));
    std::filesystem::create_directories(scratch / "shards");
    scratch.write("shards/w-00001-of-00002.safetensors", file_of(first, texts));
    scratch.write("shards/w-00002-of-00002.safetensors", file_of(second));
    scratch.write("shards/w.safetensors.index.json",
                  index_of({{"w-00001-of-00002.safetensors", first}, {"w-00002-of-00002.safetensors", second}}));
    const auto described = [&](std::string const& name, std::vector<std::string> const& weights) {
      return scratch.write(name, description_of(texts, weights));
    };
    const std::vector<std::string> ways{
        scratch / "all.safetensors",
        scratch / "shards/w.safetensors.index.json",
        scratch / "shards",
        described("one.txt", {"all.safetensors"}),
        described("index.txt", {"shards/w.safetensors.index.json"}),
        described("folder.txt", {"shards"}),
        described("files.txt",
                  {"shards/w-00002-of-00002.safetensors", "shards/../shards/w-00001-of-00002.safetensors"}),
        described("absolute.txt", {scratch / "all.safetensors"}),
    };
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor expected = asked(load_dit(script, {.dtype = type}));
      for (std::string const& way : ways) {
        if (stored != at::kFloat && way != ways[0]) continue;
        INFO(way << ", " << at::toString(stored) << " as " << at::toString(type));
        REQUIRE(is_safetensors(way));
        CHECK(asked(load_safetensors(way, {.dtype = type})).equal(expected));
      }
      const LoadOptions options{.device = at::kCPU, .dtype = type, .readers = {safetensors_reader()}};
      CHECK(asked(load_network(ways[3], options)).equal(expected));
      CHECK(asked(load_network(ways[3], with_backend(options, "native"))).equal(expected));
    }
    const StoredWeights weights = read_stored_weights(ways[4]);
    std::int64_t count = 0;
    for (auto const& [name, tensor] : tensors) count += tensor.numel();
    CHECK(weights.count == count);
    CHECK(weights.type == (stored == at::kDouble ? at::kFloat : stored));
  }
  CHECK(load_network_info(scratch / "one.txt", {.readers = {safetensors_reader()}}).name ==
        read_network_info(script).name);
  const std::vector<Network> pair =
      load_networks({scratch / "one.txt", script}, {.device = at::kCPU, .readers = {safetensors_reader()}});
  CHECK(asked(pair[0]).equal(asked(pair[1])));
  CHECK_FALSE(is_safetensors(script));
  CHECK_FALSE(is_safetensors(scratch / "nothing"));
}

TEST_CASE("what is not said in a file of weights may be said by the program") {
  const Scratch scratch("plain");
  const std::string plain = scratch.write("plain.safetensors", file_of(safetensors::tensors_of(script, at::kFloat)));
  CHECK(refusal([&] { load_safetensors(plain); }).find("must say what network it is under \"tstitch/format\"") !=
        std::string::npos);
  CHECK(asked(load_safetensors(plain, {.info = read_network_info(script)})).equal(asked(load_dit(script))));
}

TEST_CASE("8 bits take the inputs that a description states") {
  const Scratch scratch("eight");
  auto texts = safetensors::texts_of(script);
  scratch.write("all.safetensors", file_of(safetensors::tensors_of(script, at::kFloat)));
  const LoadOptions eight = with_backend({.device = at::kCPU, .readers = {safetensors_reader()}}, "native-e4m3");
  const std::string none = scratch.write("none.txt", description_of(texts, {"all.safetensors"}));
  CHECK(refusal([&] { load_network(none, eight); }).find("must state e4m3_inputs to compute in 8 bits, got none") !=
        std::string::npos);
  const std::vector<double> inputs = largest_inputs(script, {}, {.steps = 2, .images = 1});
  for (double const input : inputs)
    texts["e4m3_inputs"] += (texts["e4m3_inputs"].empty() ? "" : "\n") + detail::text(input);
  const std::string with = scratch.write("with.txt", description_of(texts, {"all.safetensors"}));
  const std::vector<double> read = read_safetensors_info(with).architecture.e4m3_inputs;
  REQUIRE(read.size() == inputs.size());
  CHECK(asked(load_network(with, eight)).equal(asked(load_dit(script, {}, {.e4m3_inputs = read}))));
}

TEST_CASE("loaders of other files refuse descriptions of networks by name") {
  const Scratch scratch("others");
  scratch.write("all.safetensors", file_of(safetensors::tensors_of(script, at::kFloat)));
  const std::string path = scratch.write("one.txt", description_of(safetensors::texts_of(script), {"all.safetensors"}));
  const std::string words = "got a description of a network, whose weights lie elsewhere: the native engine runs it";
  const LoadOptions with{.device = at::kCPU, .readers = {safetensors_reader()}};
  for (std::string const& message :
       {refusal([&] { load_dit(path); }), refusal([&] { load_torchscript(path); }),
        refusal([&] { load_aot_inductor(path); }), refusal([&] { read_network_info(path); }),
        refusal([&] { load_network(path, {.device = at::kCPU}); }),
        refusal([&] { load_network(path, with_backend(with, "torchscript")); }),
        refusal([&] { load_network(path, with_backend(with, "aot-inductor")); })}) {
    INFO(message);
    CHECK(message.find(path) != std::string::npos);
    CHECK(message.find(words) != std::string::npos);
  }
}

TEST_CASE("the tensors must be those of the network") {
  const Scratch scratch("tensors");
  const auto texts = safetensors::texts_of(script);
  const Tensors good = safetensors::tensors_of(script, at::kFloat);
  const auto refused = [&](Tensors const& tensors, std::string const& words) {
    const std::string message =
        refusal([&] { load_safetensors(scratch.write("odd.safetensors", file_of(tensors, texts))); });
    INFO(message);
    CHECK(message.starts_with("tstitch::load_safetensors: "));
    CHECK(message.find(words) != std::string::npos);
  };
  Tensors odd = good;
  odd.erase("blocks.2.attn.proj.bias");
  refused(odd, "must hold blocks.2.attn.proj.bias of shape [");
  odd = good;
  odd["pos_embed"] = odd["pos_embed"].narrow(1, 0, 3);
  refused(odd, "must hold pos_embed of shape [1, ");
  odd = good;
  odd.emplace("lora\x1b.weight", good.at("pos_embed"));
  refused(odd, "must hold the tensors of this network only, got also lora\\x1b.weight");
  odd = good;
  for (auto const* name : {"a", "b", "c", "d", "e"}) odd.emplace(name, good.at("pos_embed"));
  refused(odd, "got also a, b, c, d and others");
  odd = good;
  odd.emplace("blocks." + std::to_string(read_network_info(script).architecture.depth) + ".attn.qkv.weight",
              good.at("pos_embed"));
  refused(odd, "blocks, got also blocks.");
  auto other = texts;
  other["architecture"] = "pixart";
  CHECK(refusal([&] {
          load_safetensors(scratch.write("other.safetensors", file_of(good, other)));
        }).find("must have the architecture dit, dit_diffusers, sit or sd3, got 'pixart'") != std::string::npos);
}

TEST_CASE("a header must be what the format says") {
  const Scratch scratch("header");
  const auto refused = [&](std::string const& bytes, std::string const& words) {
    const std::string message = refusal([&] { detail::SafetensorsFile(scratch.write("odd.safetensors", bytes)); });
    INFO(words);
    CHECK(message.starts_with("tstitch::load_safetensors: '"));
    CHECK(message.find("odd.safetensors'") != std::string::npos);
    CHECK_THAT(message, ContainsSubstring(words));
    CHECK(message.size() < 700);
  };
  const std::string data(8, '\0');
  const auto tensor = [](std::string const& type, std::string const& shape, std::string const& offsets) {
    return "{\"dtype\":" + type + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  };
  const std::string f32 = "\"F32\"", good = "{\"a\":" + tensor(f32, "[2]", "[0,8]") + "}";
  REQUIRE_NOTHROW(detail::SafetensorsFile(scratch.write("good.safetensors", prefixed(good, data))));
  REQUIRE_NOTHROW(detail::SafetensorsFile(scratch.write("good.safetensors", prefixed("{}"))));
  REQUIRE_NOTHROW(detail::SafetensorsFile(
      scratch.write("good.safetensors",
                    prefixed("{\"s\":" + tensor(f32, "[]", "[4,8]") + ",\"z\":" + tensor("\"F16\"", "[0,3]", "[0,0]") +
                                 ",\"a\":" + tensor("\"I8\"", "[4,1]", "[0,4]") + "}",
                             data))));
  refused("", "empty file");
  refused("1234567", "got 7 bytes");
  refused(std::string(8, '\xff'), "a header of 18446744073709551615 bytes in a file of 8");
  refused(prefixed(good).substr(0, 20), "a header of 54 bytes in a file of 20");
  refused(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "a header of 100000001 bytes in a file of 10");
  refused(prefixed(""), "must begin with {, got ''");
  refused(prefixed(" " + good, data), "must begin with {, got ' '");
  refused(prefixed("[]"), "must begin with {");
  refused(prefixed("{\"a\":"), "parse error");
  refused(prefixed(good + "x", data), "parse error");
  refused(prefixed("{\"\xff\":1}"), "UTF-8");
  refused(prefixed("{\"a\":" + std::string(100000, '[')), "must be an object, got a list");
  refused(prefixed("{\"a\":{\"shape\":" + std::string(100000, '[')), "a list in a list");
  refused(prefixed("{\"a\":{\"b\":" + std::string(100000, '{')), "an object in it");
  refused(prefixed("{\"a\":1}"), "'a' of the header must be an object, got 1");
  refused(prefixed("{\"a\":{}}"), "must have dtype, shape and data_offsets, got fewer");
  refused(prefixed("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", data), "must have dtype, shape and data_offsets");
  refused(prefixed("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":1}}", data), "'more': 1");
  refused(prefixed("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}", data),
          "one shape, got two");
  refused(prefixed("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", data),
          "one dtype");
  refused(prefixed("{\"a\":" + tensor(f32, "[2]", "[0,8]") + ",\"a\":" + tensor(f32, "[2]", "[0,8]") + "}", data),
          "'a' of the header must be there once, got it twice");
  refused(prefixed("{\"__metadata__\":{},\"__metadata__\":{}}"), "must be there once");
  refused(prefixed("{\"__metadata__\":{\"k\":1}}"), "must be texts, got 'k': 1");
  refused(prefixed("{\"__metadata__\":{\"k\":\"1\",\"k\":\"1\"}}"), "'k' twice");
  refused(prefixed("{\"__metadata__\":[]}"), "must be an object, got a list");
  refused(prefixed("{\"__metadata__\":{\"k\":{}}}"), "an object in it");
  for (auto const& [type, shape, offsets, words] : std::vector<std::array<std::string, 4>>{
           {"\"F33\"", "[2]", "[0,8]", "must have a dtype that there is, got 'F33'"},
           {"32", "[2]", "[0,8]", "'dtype': 32"},
           {f32, "2", "[0,8]", "'shape': 2"},
           {f32, "[\"2\"]", "[0,8]", "a text in a list"},
           {f32, "[{}]", "[0,8]", "an object in a list"},
           {f32, "[-2]", "[0,8]", "'shape': -2"},
           {f32, "[2.0]", "[0,8]", "'shape': 2.0"},
           {f32, "[null]", "[0,8]", "'shape': null"},
           {f32, "[true]", "[0,8]", "'shape': true"},
           {f32, "[18446744073709551617]", "[0,8]", "'shape': 1844"},
           {f32, "[18446744073709551615]", "[0,8]", "at most 2^48 elements"},
           {f32, "[4294967296,4294967296]", "[0,8]", "at most 2^48 elements"},
           {f32, "[0,18446744073709551615]", "[0,0]", "at most 2^48 elements"},
           {f32, "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]", "[0,8]", "at most 16 sizes"},
           {f32, "[3]", "[0,8]", "must have as many bytes as its shape, 12, got data_offsets 0 and 8"},
           {f32, "[]", "[0,8]", "must have as many bytes as its shape, 4"},
           {f32, "[2]", "[8,0]", "must have as many bytes"},
           {f32, "[2]", "[0]", "two data_offsets, got 1"},
           {f32, "[2]", "[0,8,8]", "two data_offsets, got more"},
           {f32, "[2]", "[4,12]", "must begin where another tensor ends, at byte 0, got 4"},
           {f32, "[1]", "[0,4]", "must account for all 8 bytes of numbers, got 4"},
           {f32, "[4]", "[0,16]", "must account for all 8 bytes of numbers, got 16"},
           {f32, "[0]", "[18446744073709551615,18446744073709551615]", "at byte 0"},
       }) {
    refused(prefixed("{\"a\":" + tensor(type, shape, offsets) + "}", data), words);
  }
  refused(prefixed("{\"a\":" + tensor(f32, "[1]", "[0,4]") + ",\"b\":" + tensor(f32, "[1]", "[0,4]") + "}", data),
          "must begin where another tensor ends, at byte 4, got 0");
  refused(prefixed("{\"a\":" + tensor(f32, "[1]", "[0,4]") + ",\"b\":" + tensor("\"F16\"", "[1]", "[6,8]") + "}", data),
          "'b' of the header must begin where another tensor ends, at byte 4, got 6");
}

TEST_CASE("tensors of types that are not computed with are refused when they are asked for") {
  const Scratch scratch("types");
  const std::string path =
      scratch.write("eight.safetensors",
                    prefixed(R"({"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})", std::string(8, '\0')));
  const auto files = std::make_shared<detail::SafetensorsFiles>(std::vector<std::string>{path});
  const auto tensors = detail::tensors_of(files, "it");
  CHECK(refusal([&] { tensors.at("a").read(at::kCPU); }) ==
        "tstitch::load_safetensors: it: a must be F32, F16, BF16 or F64, got F8_E4M3");
}

TEST_CASE("an index must name files beside it, and what they hold") {
  const Scratch scratch("index");
  const at::Tensor one = detail::host_tensor({1}, at::kFloat).fill_(1);
  scratch.write("s1.safetensors", file_of({{"a", one}}, {{"name", "x"}}));
  scratch.write("s2.safetensors", file_of({{"b", one}}, {{"name", "x"}}));
  scratch.write("again.safetensors", file_of({{"a", one}}));
  scratch.write("other.safetensors", file_of({{"b", one}}, {{"name", "y"}}));
  const auto read = [&](std::string const& json) {
    return refusal([&] { detail::SafetensorsFiles({scratch.write("i.safetensors.index.json", json)}); });
  };
  const auto map = [](std::string const& pairs) { return "{\"weight_map\":{" + pairs + "}}"; };
  CHECK(read(map(R"("a":"s1.safetensors","b":"s2.safetensors")")) == "nothing");
  CHECK(read(R"({"metadata":{"x":[1],"y":"z"},"weight_map":{"a":"s1.safetensors"}})") == "nothing");
  for (auto const& [json, words] : std::vector<std::pair<std::string, std::string>>{
           {"", "empty file"},
           {"x", "parse error"},
           {"[]", "must have a weight_map from tensors to files, got a list"},
           {"3", "must have a weight_map from tensors to files, got 3"},
           {"{}", "must have a weight_map from tensors to files, got none"},
           {R"({"weight_map":"a"})", "weight_map from tensors to files, got 'a'"},
           {R"({"weight_map":{"a":1}})", "weight_map from tensors to files, got 1"},
           {R"({"weight_map":{"a":["s1.safetensors"]}})", "got a list"},
           {R"({"weight_map":{"a":{}}})", "an object in 'weight_map'"},
           {R"({"weight_map":{},"weight_map":{}})", "one weight_map, got two"},
           {map(R"("a":"s1.safetensors","a":"s1.safetensors")"), "each tensor once, got 'a' twice"},
           {map(R"("a":"../s1.safetensors")"), "must name .safetensors files beside it, got '../s1.safetensors'"},
           {map(R"("a":"/etc/s1.safetensors")"), "beside it, got '/etc/s1.safetensors'"},
           {map(R"("a":".safetensors")"), "beside it, got '.safetensors'"},
           {map(R"("a":"x\\s1.safetensors")"), "beside it"},
           {map(R"("a":"s1.safetensors\u0000")"), "beside it"},
           {map(R"("a":"")"), "beside it, got ''"},
           {map(R"("a":"s1.bin")"), "beside it, got 's1.bin'"},
           {map(R"("a":"s3.safetensors")"), "must have all its files beside it, got no s3.safetensors"},
           {map(R"("c":"s1.safetensors")"),
            "must list every tensor of its files, got none called 'a' in s1.safetensors"},
           {map(R"("a":"s1.safetensors","c":"s1.safetensors")"), "list tensors that its files have, got 'c' of s1"},
           {map(R"("a":"s2.safetensors","b":"s1.safetensors")"), "must list every tensor of its files"},
           {map(R"("a":"s1.safetensors","b":"again.safetensors")"), "must "},
           {map(R"("a":"s1.safetensors","b":"other.safetensors")"),
            "say the same of the network as the files before it"},
       }) {
    INFO(json);
    CHECK_THAT(read(json), ContainsSubstring(words));
    CHECK_THAT(read(json), ContainsSubstring("tstitch::load_safetensors: "));
  }
  CHECK_THAT(refusal([&] {
               detail::SafetensorsFiles({scratch / "s1.safetensors", scratch / "again.safetensors"});
             }),
             ContainsSubstring("must hold tensors that no file before it has, got 'a'"));
  CHECK_THAT(refusal([&] { detail::SafetensorsFiles({scratch / "none.safetensors"}); }),
             ContainsSubstring("that can be read"));
  CHECK_THAT(refusal([&] { detail::SafetensorsFiles({scratch.path.string()}); }), ContainsSubstring("; name one"));
  std::filesystem::create_directories(scratch / "empty");
  CHECK_THAT(refusal([&] { detail::SafetensorsFiles({scratch / "empty"}); }), ContainsSubstring("got one without"));
}

TEST_CASE("a description is read line by line") {
  const Scratch scratch("description");
  const auto refused = [&](std::string const& text, std::string const& words) {
    const std::string message = refusal([&] { read_network_description(scratch.write("d.txt", text)); });
    INFO(text);
    CHECK(message.starts_with("tstitch::read_network_description: '"));
    CHECK_THAT(message, ContainsSubstring(words));
  };
  const std::string begin = "tstitch network 1\n";
  refused("tstitch network 2\nweights a\n", "line 1: must be 'tstitch network 1', got 'tstitch network 2'");
  refused("tstitch network 1 \nweights a\n", "line 1: must be 'tstitch network 1'");
  refused(begin, "got one without a line 'weights'");
  refused(begin + "weights\n", "line 2: must have a path behind weights");
  refused(begin + "weights a\x01z\n", "line 2: must have a path behind weights, got 'weights a\\x01z'");
  refused(begin + "weights a\r\n", "line 2");
  refused(begin + "name a\x1b\n", "line 2: must be text without control characters");
  refused(begin + "name \xff\n", "bytes that are no UTF-8");
  refused(begin + "names x\n", "line 2: must begin with a key that there is, got 'names x'");
  refused(begin + "format 1\n", "line 2: must begin with a key that there is");
  refused(begin + "e4m3_weight_scales 1\n", "line 2: must begin with a key that there is");
  const NetworkDescription read = read_network_description(scratch.write(
      "d.txt", begin + "#\nname a b\nconditions x float 1\nconditions y int64\nlicense\nweights b/c d\nweights /e"));
  CHECK(read.texts == std::map<std::string, std::string>{
                          {"format", "1"}, {"name", "a b"}, {"conditions", "x float 1\ny int64"}, {"license", ""}});
  CHECK(read.weights == std::vector<std::string>{scratch / "b/c d", "/e"});

  const auto loaded = [&](std::string const& lines) {
    return refusal([&] { load_safetensors(scratch.write("d.txt", begin + lines)); });
  };
  CHECK_THAT(loaded("weights missing.safetensors\n"),
             ContainsSubstring("missing.safetensors': must be a file that can be read"));
  scratch.write("w.safetensors", prefixed("{}"));
  CHECK_THAT(loaded("weights w.safetensors\n"), ContainsSubstring("tstitch/name is required"));
  auto texts = safetensors::texts_of(script);
  texts["dtype"] = "int8";
  CHECK_THAT(refusal([&] { load_safetensors(scratch.write("d.txt", description_of(texts, {"w.safetensors"}))); }),
             ContainsSubstring("dtype must be float32, float16 or bfloat16, got 'int8'"));
}

TEST_CASE("truncations and flipped bits of a header are refused by name or read as another file") {
  const Scratch scratch("hostile");
  Tensors tensors;
  for (int k = 0; k < 4; ++k)
    tensors.emplace("blocks." + std::to_string(k), detail::host_tensor({2, k + 1}, at::kFloat).fill_(k));
  const std::string good = file_of(tensors, {{"name", "x"}});
  const std::size_t header = good.size() - 80;
  const auto read = [&](std::string const& bytes) {
    const std::string path = scratch.write("odd.safetensors", bytes);
    std::string message = refusal([&] {
      const detail::SafetensorsFiles files({path});
      for (auto const& [name, place] : files.tensors()) {
        if (place.entry.type->read_as) files.read(place, at::kCPU);
      }
    });
    CHECK((message == "nothing" || message.starts_with("tstitch::load_safetensors: '")));
    return message;
  };
  REQUIRE(read(good) == "nothing");
  for (std::size_t size = 0; size < good.size(); ++size) REQUIRE(read(good.substr(0, size)) != "nothing");
  REQUIRE(read(good + "x") != "nothing");
  for (std::size_t byte = 0; byte < header; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string odd = good;
      odd[byte] = char(odd[byte] ^ (1 << bit));
      read(odd);
    }
  }
  std::mt19937 random(1);
  for (int k = 0; k < 300; ++k) {
    std::string odd = good;
    for (int change = 0; change < 3; ++change) odd[8 + random() % (header - 8)] = "{}[]\",:0019aF"[random() % 13];
    read(odd);
  }
}

TEST_CASE("a header takes memory in proportion to its size") {
  const Scratch scratch("memory");
  std::string header = "{";
  for (int k = 0; k < 20000; ++k) {
    header += (k ? ",\"" : "\"") + std::to_string(k) + R"(":{"dtype":"U8","shape":[],"data_offsets":[)" +
              std::to_string(k) + "," + std::to_string(k + 1) + "]}";
  }
  header += "}";
  const std::string path = scratch.write("many.safetensors", prefixed(header, std::string(20000, '\0')));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  const detail::SafetensorsFile file(path);
  getrusage(RUSAGE_SELF, &after);
  CHECK(file.header().tensors().size() == 20000);
  CHECK(std::size_t(after.ru_maxrss - before.ru_maxrss) * 1024 < 10 * header.size());
}

TEST_CASE("the fingerprint of a description is that of what it says and of the weights") {
  const Scratch scratch("fingerprint");
  const auto texts = safetensors::texts_of(script);
  const Tensors tensors = safetensors::tensors_of(script, at::kFloat);
  const std::string bytes = file_of(tensors);
  scratch.write("w.safetensors", bytes);
  const std::string path = scratch.write("d.txt", description_of(texts, {"w.safetensors"}));
  const std::string found = fingerprint_text(path);
  CHECK(found.size() == 16);
  std::filesystem::create_directories(scratch / "moved");
  scratch.write("moved/v.safetensors", bytes);
  CHECK(fingerprint_text(scratch.write("e.txt", description_of(texts, {"moved/v.safetensors"}))) == found);
  auto other = texts;
  other["name"] = "other";
  CHECK(fingerprint_text(scratch.write("e.txt", description_of(other, {"w.safetensors"}))) != found);
  std::set<std::string> all{found};
  Tensors further = tensors;
  for (auto& [name, tensor] : further) tensor = tensor.mul(1.001);
  scratch.write("w.safetensors", file_of(further));
  all.insert(fingerprint_text(path));
  scratch.write("w.safetensors", file_of(tensors, {{"name", "x"}}));
  all.insert(fingerprint_text(path));
  scratch.write("w.safetensors", file_of(safetensors::tensors_of(script, at::kHalf)));
  all.insert(fingerprint_text(path));
  CHECK(all.size() == 4);
  for (std::string const& odd : {std::string(), std::string("123"), bytes.substr(0, 100), std::string(20, '\xff')}) {
    scratch.write("w.safetensors", odd);
    CHECK_THAT(refusal([&] { fingerprint_text(path); }), ContainsSubstring("tstitch::fingerprint_text: "));
  }
  CHECK_THAT(refusal([&] { fingerprint_text(scratch.write("f.txt", description_of(texts, {"moved"}))); }),
             ContainsSubstring("tstitch::fingerprint_text: "));
}
