// Folders of export_pipeline.py: what pipeline.txt may say, and that a prompt is drawn as it is by hand. What the
// exporter writes is tried in tests/export/pipeline_test.py.

#include <tstitch/file/fingerprint.hpp>
#include <tstitch/pipeline.hpp>

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"

using namespace tstitch;

namespace {

const std::filesystem::path folder = std::filesystem::path(TSTITCH_TEST_DATA) / "pipeline";

void save(std::string const& name, std::string const& code, Metadata const& texts) {
  torch::jit::Module module("tiny");
  module.register_parameter("scale", detail::host_tensor({1}, at::kFloat).fill_(0.5), false);
  module.define(code);
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : texts) files["tstitch/" + key] = value;
  std::filesystem::create_directories(folder);
  module.save((folder / name).string(), files);
}

/// Of a text its bytes times a factor, in so many tokens and channels; and of some encoders a vector of them.
void save_encoder(std::string const& name, double factor, std::int64_t tokens, std::int64_t channels, bool pooled) {
  const std::string sizes = std::to_string(tokens) + ", " + std::to_string(channels);
  save(name,
       "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
       "  rows: List[Tensor] = []\n"
       "  for text in texts:\n"
       "    rows.append(torch.full([" +
           sizes + "], float(len(text))) * " + std::to_string(factor) +
           ")\n"
           "  states = torch.stack(rows)\n"
           "  found = {\"text_embedding\": states}\n" +
           (pooled ? "  found[\"pooled_embedding\"] = states[:, 0]\n" : "") +
           "  return found\n"
           "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
           "  ids = torch.full([len(texts), " +
           std::to_string(tokens) +
           "], 7)\n"
           "  return ids, torch.ones_like(ids), torch.zeros([len(texts)], dtype=4)\n",
       {{"format", "1"},
        {"kind", "text_encoder"},
        {"name", name},
        {"text_tokens", std::to_string(tokens)},
        {"outputs", "text_embedding float " + std::to_string(tokens) + " " + std::to_string(channels) +
                        (pooled ? "\npooled_embedding float " + std::to_string(channels) : "")}});
}

/// A network of latents that sees all that it is given.
void save_network(std::string const& name, double factor, Metadata changes = {}) {
  changes["name"] = name;
  changes.insert({{"conditions", "text_embedding float 5 4\npooled_embedding float 5\nsize_ids float 3"},
                  {"guidance_scale", "3"},
                  {"latent_scale", "0.5"}});
  save(name,
       "def forward(self, x, t, text, pooled, sizes):\n"
       "  weights = torch.arange(20).view(5, 4).to(x)\n"
       "  seen = (text * weights).mean([1, 2]) + pooled.mean([1]) + sizes.sum([1]) / 100\n"
       "  return x * " +
           std::to_string(factor) + " + seen.view(-1, 1, 1, 1) / 10\n",
       metadata_of_shape("4 * *", changes));
}

void save_files() {
  save_network("small.pt", 0.5);
  save_network("large.pt", 0.4);
  save_encoder("first.pt", 0.01, 2, 2, true);
  save_encoder("second.pt", 0.02, 2, 1, true);
  save_encoder("long.pt", 0.03, 2, 3, false);
  save("decoder.pt", "def forward(self, z):\n  return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)\n",
       {{"format", "1"},
        {"kind", "decoder"},
        {"name", "doubled"},
        {"latent_channels", "4"},
        {"upsampling", "2"},
        {"latent_scale", "0.5"}});
}

const std::string files =
    "network small.pt\nnetwork large.pt\n"
    "text_encoder first.pt\ntext_encoder second.pt beside\ntext_encoder long.pt behind\n"
    "decoder decoder.pt\n";
const std::string whole = "tstitch pipeline 1\nname tiny\n" + files +
                          "fill text_embedding 5 4\nfill pooled_embedding 5\n"
                          "condition size_ids height width 7\nnull size_ids height/width 0 7\n"
                          "shape 4 8 8\nprofile dit-ddim\nsteps 6\nguidance 2.5\nratio 0.5\nnegative blurry\n"
                          "license one\nlicense two\nmeasured small.pt: 1e-6\n# nothing\n\n";

std::string with_text(std::string const& text) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "pipeline.txt", std::ios::binary) << text;
  return folder.string();
}

std::string refusal(std::string const& text) {
  return message_of<std::runtime_error>([&] { read_pipeline_info(with_text(text)); });
}

at::Tensor filled(std::vector<std::int64_t> const& sizes, double value) {
  return detail::host_tensor(sizes, at::kFloat).fill_(value);
}

}  // namespace

TEST_CASE("a pipeline is what its text says") {
  save_files();
  const PipelineInfo info = read_pipeline_info(with_text(whole));
  const auto path = [](char const* name) { return (folder / name).string(); };
  CHECK(info.name == "tiny");
  CHECK(info.networks == std::vector<std::string>{path("small.pt"), path("large.pt")});
  REQUIRE(info.text_encoders.size() == 3);
  CHECK(info.text_encoders[1].file == path("second.pt"));
  CHECK_FALSE(info.text_encoders[0].behind);
  CHECK_FALSE(info.text_encoders[1].behind);
  CHECK(info.text_encoders[2].behind);
  CHECK(info.decoder == path("decoder.pt"));
  CHECK(info.encoder.empty());
  REQUIRE(info.filled.size() == 2);
  CHECK(info.filled[0].name == "text_embedding");
  CHECK(info.filled[0].shape == std::vector<std::int64_t>{5, 4});
  CHECK(info.shape == std::vector<std::int64_t>{4, 8, 8});
  CHECK(info.profile == "dit-ddim");
  CHECK(info.steps == 6);
  CHECK(info.guidance == std::vector<double>{2.5});
  CHECK(info.ratio == 0.5);
  CHECK(info.routing == "stitch");
  CHECK(info.negative == "blurry");
  CHECK(info.license == "one\ntwo");
  CHECK(info.measured == std::vector<std::string>{"small.pt: 1e-6"});
  const PipelineInfo least = read_pipeline_info(with_text("tstitch pipeline 1\nname a\nnetwork small.pt"));
  CHECK((least.networks.size() == 1 && least.text_encoders.empty() && least.guidance.empty() && !least.negative));
  CHECK(least.ratio == 0.4);
  CHECK(read_pipeline_info(with_text("tstitch pipeline 1\nname a\nnetwork small.pt\nnegative \n")).negative == "");
}

TEST_CASE("what no pipeline.txt says is refused, with its line") {
  save_files();
  const std::string start = "tstitch pipeline 1\nname a\nnetwork small.pt\n";
  const auto words = GENERATE(table<std::string, std::string>({
      {"", "empty file"},
      {"tstitch pipeline 2\nname a\nnetwork small.pt\n",
       "line 1: must be 'tstitch pipeline 1', got 'tstitch pipeline 2'"},
      {"{\"name\": 1}", "line 1: must be 'tstitch pipeline 1'"},
      {"tstitch pipeline 1\r\nname a\r\n", "line 1: must be"},
      {"tstitch pipeline 1\nname a\n", "must have a line 'network', got none"},
      {"tstitch pipeline 1\nnetwork small.pt\n", "must have a line 'name', got none"},
      {"+colour red\n", "line 4: must begin with a key that there is, got 'colour red'"},
      {"+name b\n", "line 4: must be there once"},
      {"+name\n", "line 4: must have a value"},
      {"+ratio 0.4\nratio 0.5\n", "line 5: must be there once"},
      {"+ratio nan\n", "line 4: must have numbers in [0, 1]"},
      {"+ratio 1.5\n", "line 4: must have numbers in [0, 1]"},
      {"+ratio 0.4 0.5\n", "line 4: must have numbers"},
      {"+guidance inf\n", "must have numbers in [0, 1000]"},
      {"+guidance 1 2\n", "guidance must be one scale, or one for each of the 1 networks, got 2"},
      {"+steps 0\n", "must have numbers in [1, 1000000]"},
      {"+steps 2.5\n", "must have numbers"},
      {"+shape 4 0 8\n", "must have numbers in [1,"},
      {"+shape 4  8\n", "must have numbers in [1,"},
      {"+routing sideways\n", "must have a routing that there is"},
      {"+network ../small.pt\n", "must be the name of a file in the folder"},
      {"+network /etc/passwd\n", "must be the name of a file in the folder"},
      {"+network .small.pt\n", "must be the name of a file in the folder"},
      {"+network large.pt 1 2\n", "must be the name of a file in the folder"},
      {"+network none.pt\n", "line 4: must be a file that is there, got 'none.pt'"},
      {"+network large.pt 123\n", "must have a fingerprint of 16 hexadecimal digits, got '123'"},
      {"+network large.pt 0000000000000000\n",
       "'large.pt' must have the fingerprint 0000000000000000, got another file, of "},
      {"+text_encoder first.pt beside\n", "must have an encoder before it"},
      {"+text_encoder first.pt\ntext_encoder first.pt apart\n", "must have a prefix behind apart"},
      {"+text_encoder first.pt\ntext_encoder second.pt above\n", "must have a fingerprint of 16"},
      {"+fill text_embedding\n", "must have values behind the name"},
      {"+fill text_embedding 5 x\n", "must have numbers"},
      {"+condition a height depth\n", "must be of numbers, height, width and height/width"},
      {"+condition a 1\ncondition a 2\n", "must be there once for a name"},
      {"+condition a 1 2\nnull a 1\n", "null must be of a condition, got 'a'"},
      {"+given\n", "line 4: must have a value"},
      {"+given a b\n", "line 4: must be one name, got 'a b'"},
      {"+given a\ngiven a\n", "line 5: must be there once for a name, got 'a'"},
      {"+null a 1\n", "null must be of a condition, got 'a'"},
      {"+negative a\tb\n", "must be text without control characters"},
      {"+license \xff\n", "must be UTF-8"},
  }));
  std::string text = std::get<0>(words);
  if (text.starts_with("+")) text = start + text.substr(1);
  CAPTURE(text);
  CHECK_THAT(refusal(text), ContainsSubstring(std::get<1>(words)));
  CHECK_THAT(refusal(text), ContainsSubstring("pipeline.txt"));
}

TEST_CASE("folders that are no pipelines are refused") {
  const auto refused = [](std::string const& path) {
    return message_of<std::runtime_error>([&] { read_pipeline_info(path); });
  };
  CHECK_THAT(refused("nowhere"), ContainsSubstring("'nowhere': must be a folder with the pipeline.txt of "
                                                   "export_pipeline.py, got nothing"));
  const std::filesystem::path empty = folder / "empty";
  std::filesystem::create_directories(empty);
  CHECK_THAT(refused(empty.string()), ContainsSubstring("got a folder without"));
  CHECK_THAT(refused(__FILE__), ContainsSubstring("got a file"));
  std::filesystem::create_directories(empty / "pipeline.txt");
  CHECK_THAT(refused(empty.string()), ContainsSubstring("an empty file or a folder"));
  std::filesystem::remove(empty / "pipeline.txt");
  std::filesystem::remove(empty);
}

TEST_CASE("files have the fingerprints that the text says") {
  save_files();
  std::string text = "tstitch pipeline 1\nname a\n";
  for (char const* const name : {"small.pt", "large.pt"}) {
    text += "network " + std::string(name) + " " + fingerprint_text((folder / name).string()) + "\n";
  }
  text += "text_encoder first.pt " + fingerprint_text((folder / "first.pt").string()) + "\n";
  text += "text_encoder second.pt beside " + fingerprint_text((folder / "second.pt").string()) + "\n";
  CHECK(read_pipeline_info(with_text(text)).networks.size() == 2);
  // Mixed up.
  std::filesystem::rename(folder / "first.pt", folder / "kept.pt");
  std::filesystem::copy_file(folder / "second.pt", folder / "first.pt");
  CHECK_THAT(refusal(text), ContainsSubstring("line 5: 'first.pt' must have the fingerprint"));
  std::filesystem::remove(folder / "first.pt");
  std::filesystem::rename(folder / "kept.pt", folder / "first.pt");
  // Cut off.
  std::filesystem::resize_file(folder / "large.pt", 1000);
  CHECK_THAT(refusal(text), ContainsSubstring("large.pt"));
}

TEST_CASE("texts stand beside and behind one another, and what is left is zero") {
  save_files();
  const PipelineInfo info = read_pipeline_info(with_text(whole));
  const auto part = [](double value, std::int64_t channels, bool pooled) {
    std::vector<NamedCondition> found{
        {"text_embedding", filled({3, 2, channels}, value), filled({1, 2, channels}, -value)}};
    if (pooled) found.push_back({"pooled_embedding", filled({3, channels}, value), filled({1, channels}, -value)});
    return found;
  };
  const auto found = text_conditions(info, {part(1, 2, true), part(2, 1, true), part(3, 3, false)});
  REQUIRE(found.size() == 2);
  const std::vector<double> rows{1, 1, 2, 0, 1, 1, 2, 0, 3, 3, 3, 0, 3, 3, 3, 0, 0, 0, 0, 0};
  for (at::Tensor const& text : {found[0].value, found[0].null}) {
    CHECK(text.sizes().slice(1) == at::IntArrayRef({5, 4}));
    const double sign = text.size(0) == 1 ? -1 : 1;
    for (std::int64_t k = 0; k < text.numel(); ++k) {
      CHECK(text.const_data_ptr<float>()[k] == sign * rows[std::size_t(k) % rows.size()]);
    }
  }
  CHECK(found[1].value.sizes() == at::IntArrayRef({3, 5}));
  CHECK(found[1].value.sum().item<double>() == 3 * (1 + 1 + 2));
  CHECK_THAT(message_of<std::invalid_argument>([&] { text_conditions(info, {part(1, 2, true)}); }),
             ContainsSubstring("parts must be one for each of the 3 text encoders, got 1"));
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               text_conditions(info, {part(1, 2, true), part(2, 3, true), part(3, 3, false)});
             }),
             ContainsSubstring("'text_embedding' must be at most [n, 5, 4], got [3, 4, 5]"));
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               text_conditions(info, {part(1, 2, true), part(2, 1, true), part(3, 3, true)});
             }),
             ContainsSubstring("one_behind_another: 'pooled_embedding' must be [n, tokens, channels]"));
}

TEST_CASE("what one network alone takes has names of its own") {
  save_files();
  const PipelineInfo info = read_pipeline_info(
      with_text("tstitch pipeline 1\nname a\nnetwork small.pt\ntext_encoder first.pt\ntext_encoder second.pt beside\n"
                "text_encoder first.pt apart own_\ntext_encoder long.pt behind\nfill own_text_embedding 5 4\n"));
  CHECK(same_text_encoder(info, 2) == 0);
  CHECK_FALSE(same_text_encoder(info, 1));
  CHECK(info.text_encoders[3].prefix == "own_");
  const auto part = [](double value, std::int64_t channels) {
    return std::vector<NamedCondition>{{"text_embedding", filled({1, 2, channels}, value)}};
  };
  const auto found = text_conditions(info, {part(1, 2), part(2, 1), part(1, 2), part(3, 3)});
  REQUIRE(found.size() == 2);
  CHECK((found[0].name == "text_embedding" && found[0].value.sizes() == at::IntArrayRef({1, 2, 3})));
  CHECK((found[1].name == "own_text_embedding" && found[1].value.sizes() == at::IntArrayRef({1, 5, 4})));
  CHECK(found[0].value.sum().item<double>() == 2 * (1 + 1 + 2));
  CHECK(found[1].value.sum().item<double>() == 2 * (1 + 1) + 2 * (3 + 3 + 3));
}

TEST_CASE("masks stand behind one another, too") {
  const auto mask = [](std::int64_t tokens, std::int64_t value) {
    return NamedCondition{"text_mask", detail::host_tensor({2, tokens}, at::kLong).fill_(value)};
  };
  const auto found = one_behind_another({{mask(2, 1)}, {mask(3, 5)}});
  CHECK(found[0].value.sizes() == at::IntArrayRef({2, 5}));
  CHECK(found[0].value.sum().item<std::int64_t>() == 2 * (2 + 15));
  CHECK(one_behind_another({}).empty());
  const NamedCondition null{"text_mask", mask(2, 1).value, mask(2, 1).value};
  CHECK_THAT(message_of<std::invalid_argument>([&] {
               one_behind_another({{mask(2, 1)}, {null}});
             }),
             ContainsSubstring("'text_mask' must have null twice, got once"));
}

TEST_CASE("networks are told the size of the picture") {
  save_files();
  const PipelineInfo info = read_pipeline_info(with_text(whole));
  const auto found = size_conditions(info, 96, 64);
  REQUIRE(found.size() == 1);
  CHECK(found[0].name == "size_ids");
  const auto values = [](at::Tensor const& of) {
    return std::vector<float>(of.const_data_ptr<float>(), of.const_data_ptr<float>() + of.numel());
  };
  CHECK(values(found[0].value) == std::vector<float>{96, 64, 7});
  CHECK(values(found[0].null) == std::vector<float>{1.5, 0, 7});
  CHECK_THAT(message_of<std::invalid_argument>([&] { size_conditions(info, 0, 64); }),
             ContainsSubstring("height and width must be at least 1, got 0 and 64"));
}

TEST_CASE("a pipeline draws what its parts draw by hand") {
  save_files();
  const LoadOptions cpu{.device = at::kCPU};
  const bool keeps = GENERATE(true, false);
  const auto negative = GENERATE(std::optional<std::string>(), std::optional<std::string>("ugly"));
  const auto ratio = GENERATE(std::optional<double>(), std::optional<double>(0), std::optional<double>(1));
  const auto guidance = GENERATE(std::optional<GuidanceScale>(), std::optional<GuidanceScale>(1.0));
  const std::int64_t count = GENERATE(1, 2), height = GENERATE(0, 12);
  const Pipeline pipeline = load_pipeline(with_text(whole), {.networks = cpu, .keep_text_encoders = keeps});
  const std::vector<std::string> prompts{"a fox", "in the snow", ""};
  const at::Tensor drawn = pipeline.draw({.prompts = prompts,
                                          .count = count,
                                          .seed = 11,
                                          .negative = negative,
                                          .ratio = ratio,
                                          .guidance = guidance,
                                          .height = height});

  const auto networks = load_networks({(folder / "small.pt").string(), (folder / "large.pt").string()}, cpu);
  const auto states = [&](std::vector<std::string> const& texts) {
    const std::int64_t n = std::int64_t(texts.size());
    const at::Tensor embedding = filled({n, 5, 4}, 0), vector = filled({n, 5}, 0);
    for (std::int64_t k = 0; k < n; ++k) {
      const double size = double(texts[std::size_t(k)].size());
      const at::Tensor row = embedding[k];
      row.narrow(0, 0, 2).narrow(1, 0, 2).fill_(float(size) * float(0.01));
      row.narrow(0, 0, 2).narrow(1, 2, 1).fill_(float(size) * float(0.02));
      row.narrow(0, 2, 2).narrow(1, 0, 3).fill_(float(size) * float(0.03));
      vector[k].narrow(0, 0, 2).fill_(float(size) * float(0.01));
      vector[k].narrow(0, 2, 1).fill_(float(size) * float(0.02));
    }
    return std::pair(embedding, vector);
  };
  std::vector<std::string> all;
  for (std::int64_t k = 0; k < count; ++k) all.insert(all.end(), prompts.begin(), prompts.end());
  const auto [text, pooled] = states(all);
  const auto [no_text, no_pooled] = states({negative.value_or("blurry")});
  const double pixels = height ? double(height) : 16;
  const at::Tensor sizes = filled({1, 3}, 7), null_sizes = filled({1, 3}, 7);
  sizes.select(1, 0).fill_(pixels);
  sizes.select(1, 1).fill_(16);
  null_sizes.select(1, 0).fill_(pixels / 16);
  null_sizes.select(1, 1).fill_(0);
  const auto profile = profile::dit_ddim(networks[1].noise_schedule(), 6);
  const auto sampler = make_sampler(profile, Stitch{.ratio = ratio.value_or(0.5)});
  Request request{.conditions = {{"text_embedding", text, no_text},
                                 {"pooled_embedding", pooled, no_pooled},
                                 {"size_ids", sizes, null_sizes}},
                  .count = std::int64_t(all.size()),
                  .seed = 11,
                  .guidance = {.scale = guidance ? *guidance : GuidanceScale(2.5)},
                  .shape = {4, height ? height / 2 : 8, 8}};
  request = apply(profile, request);
  const at::Tensor x = sampler.sample(networks, request).images;
  const Decoder decoder = load_decoder((folder / "decoder.pt").string());
  CHECK(drawn.equal(decoder(x)));
  CHECK(drawn.sizes() == at::IntArrayRef({std::int64_t(all.size()), 3, height ? height : 16, 16}));
}

TEST_CASE("what a pipeline calls given is each request's to bring") {
  save_files();
  const std::string start = whole.substr(0, whole.find("condition size_ids"));
  const std::string text = start + "given size_ids\nshape 4 8 8\nsteps 3\n";
  const Pipeline pipeline = load_pipeline(with_text(text), {.networks = {.device = at::kCPU}});
  CHECK(pipeline.info().given == std::vector<std::string>{"size_ids"});
  const std::vector<std::string> prompts{"a fox", "in the snow"};
  const auto drawn_with = [&](std::vector<NamedCondition> const& conditions, std::int64_t count = 1) {
    return pipeline.draw({.prompts = prompts, .count = count, .guidance = 2.0, .conditions = conditions});
  };
  // The same as of a pipeline that knows it.
  const at::Tensor numbers = filled({1, 3}, 7), no_numbers = filled({1, 3}, 2);
  const Pipeline knows =
      load_pipeline(with_text(start + "condition size_ids 7 7 7\nnull size_ids 2 2 2\nshape 4 8 8\nsteps 3\n"),
                    {.networks = {.device = at::kCPU}});
  const at::Tensor expected = knows.draw({.prompts = prompts, .count = 2, .guidance = 2.0});
  CHECK(drawn_with({{"size_ids", numbers, no_numbers}}, 2).equal(expected));
  // A row for each prompt, whose pictures take turns; and both halves of guidance see what has no counterpart.
  CHECK(drawn_with({{"size_ids", filled({2, 3}, 7), filled({2, 3}, 2)}}, 2).equal(expected));
  CHECK_FALSE(drawn_with({{"size_ids", numbers}}, 2).equal(expected));
  const at::Tensor two = filled({2, 3}, 7);
  two[1].fill_(9);
  const at::Tensor of_each = drawn_with({{"size_ids", two, no_numbers}}, 2);
  for (const std::int64_t i : {0, 2}) CHECK(of_each[i].equal(expected[i]));
  for (const std::int64_t i : {1, 3}) CHECK_FALSE(of_each[i].equal(expected[i]));

  const auto refused = [&](std::vector<NamedCondition> const& conditions) {
    return message_of<std::invalid_argument>([&] { drawn_with(conditions); });
  };
  CHECK_THAT(refused({}), ContainsSubstring("conditions must have 'size_ids' once, got none"));
  CHECK_THAT(refused({{"size_ids", numbers}, {"size_ids", numbers}}), ContainsSubstring("once, got 2 of it"));
  CHECK_THAT(refused({{"size_ids", numbers}, {"mask", numbers}}), ContainsSubstring("calls given, got 'mask'"));
  CHECK_THAT(refused({{"size_ids", filled({3, 3}, 7)}}),
             ContainsSubstring("must have 1 row or one for each of 2, got 3"));
  CHECK_THAT(refused({{"size_ids", at::Tensor()}}), ContainsSubstring("one for each of 2, got 0"));
  CHECK_THAT(refused({{"size_ids", numbers, filled({3, 3}, 7)}}), ContainsSubstring("one for each of 2, got 3"));
}

TEST_CASE("a ratio that is asked for takes the place of boundaries") {
  save_files();
  const auto plan_of = [](std::string const& routing, PipelineRequest const& request) {
    const std::string text = whole + "routing " + routing + "\n";
    const Pipeline pipeline = load_pipeline(with_text(text), {.networks = {.device = at::kCPU}});
    return pipeline.sampler(request).plan().calls(2);
  };
  // Of 6 timesteps from 833 to 0 the first lies above 800.
  CHECK(plan_of("timestep:800", {}) == std::vector<int>{1, 5});
  CHECK(plan_of("timestep:800", {.ratio = 0.5}) == std::vector<int>{3, 3});
  CHECK(plan_of("large-first", {.ratio = 0}) == std::vector<int>{0, 6});
}

TEST_CASE("a profile that is asked for takes the place of the folder's") {
  save_files();
  const Pipeline pipeline = load_pipeline(with_text(whole), {.networks = {.device = at::kCPU}});
  const PipelineRequest own{.prompts = {"a"}}, other{.prompts = {"a"}, .steps = 4, .profile = "diffusers-dpmpp"};
  const auto profile = profile::diffusers_dpmpp(pipeline.networks()[1].noise_schedule(), 4);
  CHECK(pipeline.sampler(other).plan().sampler == make_sampler(profile, Stitch{.ratio = 0.5}).plan().sampler);
  CHECK(pipeline.sampler(other).plan().sampler != pipeline.sampler(own).plan().sampler);
  CHECK_THAT(message_of<std::invalid_argument>([&] { pipeline.sampler({.profile = "theirs"}); }),
             ContainsSubstring("theirs"));
}

TEST_CASE("a pipeline refuses what it cannot draw") {
  save_files();
  const Pipeline pipeline = load_pipeline(with_text(whole), {.networks = {.device = at::kCPU}});
  const auto refused = [&](PipelineRequest const& request) {
    return message_of<std::invalid_argument>([&] { pipeline.draw(request); });
  };
  CHECK_THAT(refused({}), ContainsSubstring("prompts must be at least one, got none"));
  CHECK_THAT(refused({.prompts = {"a"}, .count = 0}), ContainsSubstring("count must be at least 1, got 0"));
  CHECK_THAT(refused({.prompts = {"a", "b"}, .count = std::int64_t(1) << 24}), ContainsSubstring("at most 2^24"));
  CHECK_THAT(refused({.prompts = {"a"}, .ratio = 1.5}), ContainsSubstring("ratio must be in [0, 1], got 1.5"));
  CHECK_THAT(refused({.prompts = {"a"}, .height = 11}), ContainsSubstring("must be multiples of 2, got 11 and 0"));
  CHECK_THAT(refused({.prompts = {"a"}, .width = -2}), ContainsSubstring("must be multiples of 2, got 0 and -2"));
  CHECK_THAT(refused({.prompts = {"\xff"}}), ContainsSubstring("text 0 must be UTF-8"));
  CHECK_THAT(refused({.prompts = {std::string(70000, 'a')}}), ContainsSubstring("must have at most 65536 bytes"));
  CHECK_THAT(refused({.prompts = {"a"}, .labels = {1, 2}}), ContainsSubstring("prompts must be as many as classes"));
  int steps = 0;
  const auto stops = [&](StepReport const&) { return ++steps == 2 ? Control::cancel : Control::proceed; };
  CHECK_THAT(message_of<std::runtime_error>([&] { pipeline.draw({.prompts = {"a"}}, stops); }),
             ContainsSubstring("draw must run to its end, got a stop"));
}

TEST_CASE("encoders that do not give what networks take are refused before weights are read") {
  save_files();
  const auto refused = [](std::string const& text) {
    return message_of<std::runtime_error>([&] { load_pipeline(with_text(text), {.networks = {.device = at::kCPU}}); });
  };
  const std::string start = "tstitch pipeline 1\nname a\nnetwork small.pt\ncondition size_ids 1 2 3\n";
  CHECK_THAT(refused(start), ContainsSubstring("its text encoders must give 'text_embedding' of [5, 4], which "
                                               "'small.pt' takes, got none"));
  CHECK_THAT(refused(start + "text_encoder first.pt\n"), ContainsSubstring("takes, got [2, 2]"));
  CHECK_THAT(refused(start + "text_encoder first.pt\nfill text_embedding 5 4\n"),
             ContainsSubstring("'pooled_embedding' of [5], which 'small.pt' takes, got [2]"));
  CHECK_THAT(refused(start + "text_encoder long.pt\ntext_encoder first.pt behind\ntext_encoder second.pt behind\n"),
             ContainsSubstring("its text encoders must go together, got"));
  CHECK_THAT(refused(start + "text_encoder decoder.pt\n"), ContainsSubstring("kind must be text_encoder"));
  CHECK_THAT(refused(whole.substr(0, whole.find("condition size_ids"))), ContainsSubstring("'size_ids' of [3]"));
}
