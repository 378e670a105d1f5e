// Writes models into the folder given, those that tstitch_sample must refuse or run in another way and small ones for
// latents: models FOLDER GOOD_MODEL
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <tstitch/tensor/host_tensor.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../network_metadata.hpp"
#include "../safetensors.hpp"

namespace {

void save(std::string const& path, std::string const& definition, Metadata const& metadata) {
  torch::jit::ExtraFilesMap files;
  for (auto const& [key, value] : metadata) files["tstitch/" + key] = value;
  torch::jit::Module module("small");
  module.define(definition);
  module.save(path, files);
}

/// Of a network that makes pictures of 32x32 pixels.
Metadata of_pixels(std::string const& name, std::string const& channels) {
  return network_metadata({{"name", name},
                           {"input_channels", channels},
                           {"input_height", "32"},
                           {"input_width", "32"},
                           {"decoding", "pixels"}});
}

void save(std::string const& path, std::string const& forward, std::string const& channels, bool with_metadata = true) {
  Metadata metadata = of_pixels("bad", channels);
  metadata.insert({{"num_classes", "10"}, {"null_class", "10"}});
  if (!with_metadata) metadata.clear();
  save(path, "def forward(self, x, t, labels):\n  " + forward + "\n", metadata);
}

/// A network of 4-channel latents that takes the embedding of a prompt, a decoder that shows 3 of them at twice the
/// size, its encoder, and two prompts.
void save_latent_models(std::string const& folder) {
  save(folder + "/latent.pt", "def forward(self, x, t, text):\n  return x - text.mean()\n",
       network_metadata({{"name", "latent"},
                         {"input_channels", "4"},
                         {"noise_schedule", "scaled_linear"},
                         {"beta_start", "0.00085"},
                         {"beta_end", "0.012"},
                         {"conditions", "text_embedding float 2 3"},
                         {"latent_scale", "0.5"},
                         {"guidance_scale", "3"}}));
  // The same latents at another scale, on another schedule.
  save(folder + "/flow_latent.pt", "def forward(self, x, t, text):\n  return x - text.mean()\n",
       network_metadata({{"name", "flow-latent"},
                         {"input_channels", "4"},
                         {"prediction", "flow"},
                         {"noise_schedule", "flow"},
                         {"timestep_type", "float32"},
                         {"conditions", "text_embedding float 2 3"},
                         {"latent_scale", "2"}}));
  const std::string doubled =
      "def forward(self, z):\n  return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)";
  const auto decoder = [&](char const* name, char const* channels, char const* scale, char const* factor = "1") {
    save(folder + "/" + name, doubled + " * " + factor + "\n",
         {{"format", "1"},
          {"kind", "decoder"},
          {"name", "doubled"},
          {"latent_channels", channels},
          {"upsampling", "2"},
          {"latent_scale", scale}});
  };
  decoder("decoder.pt", "4", "0.5");
  save(folder + "/encoder.pt",
       "def forward(self, x):\n  small = torch.avg_pool2d(x, 2)\n  return torch.cat([small, small[:, :1]], 1)\n",
       {{"format", "1"},
        {"kind", "encoder"},
        {"name", "halved"},
        {"latent_channels", "4"},
        {"upsampling", "2"},
        {"latent_scale", "0.5"}});
  decoder("decoder_of_nan.pt", "4", "0.5", "float('nan')");
  decoder("decoder_of_16.pt", "16", "0.5");
  decoder("decoder_of_another_scale.pt", "4", "0.25");
  decoder("decoder_of_scale_1.pt", "4", "1");
  const auto prompts = [&](char const* name, at::IntArrayRef sizes) {
    c10::Dict<std::string, at::Tensor> tensors;
    tensors.insert("text_embedding", tstitch::detail::host_tensor(sizes, at::kFloat).fill_(1));
    tensors.insert("text_embedding.null", tstitch::detail::host_tensor({1, 2, 3}, at::kFloat).fill_(0));
    const std::vector<char> bytes = torch::jit::pickle_save(tensors);
    std::ofstream(folder + "/" + name, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  };
  prompts("two_prompts.pt", {2, 2, 3});
  prompts("three_prompts.pt", {3, 2, 3});
  prompts("no_prompts.pt", {0, 2, 3});
  prompts("bare_prompt.pt", {2, 3});
  const auto named = [&](char const* name, std::vector<std::string> const& texts,
                         char const* tensor = "text_embedding") {
    const std::int64_t rows = std::int64_t(texts.size());
    c10::impl::GenericDict entries(c10::StringType::get(), c10::AnyType::get());
    entries.insert(tensor, tstitch::detail::host_tensor({rows, 2, 3}, at::kFloat).fill_(1));
    if (std::string(tensor) == "text_embedding") {
      entries.insert("text_embedding.null", tstitch::detail::host_tensor({1, 2, 3}, at::kFloat).fill_(0));
    }
    c10::List<std::string> list;
    for (std::string const& text : texts) list.push_back(text);
    entries.insert("prompts", list);
    const std::vector<char> bytes = torch::jit::pickle_save(entries);
    std::ofstream(folder + "/" + name, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  };
  named("named_prompts.pt", {"A fox in the snow, at night, by the river; oil on canvas", "../\n\"\xf0\x9f\xa6\x8a"});
  named("named_prompt.pt", {"a fox\n"});
  named("other_prompt.pt", {"a hen"}, "other");
}

/// A network of 100 classes whose makers say how they sample.
void save_many_classes(std::string const& path) {
  std::string names = "tench, Tinca tinca\ncrane\ncrane\nGolden Retriever\n";
  for (int i = 4; i < 100; ++i) names += "class of number " + std::to_string(i) + "\n";
  Metadata metadata = of_pixels("many classes", "3");
  metadata.insert({{"num_classes", "100"},
                   {"null_class", "100"},
                   {"class_names", names},
                   {"guidance_scale", "4.5"},
                   {"profile", "dit_ddim"},
                   {"steps", "7"}});
  save(path, "def forward(self, x, t, labels):\n  return x\n", metadata);
}

/// A network of flow matching, as SiTs are.
void save_flow(std::string const& path) {
  save(path, "def forward(self, x, t):\n  return x\n",
       {{"format", "1"},
        {"name", "flow"},
        {"input_channels", "3"},
        {"input_height", "32"},
        {"input_width", "32"},
        {"prediction", "flow"},
        {"timestep_type", "float32"},
        {"noise_schedule", "flow"},
        {"num_train_timesteps", "1000"},
        {"decoding", "pixels"}});
}

/// Networks whose x has sizes that only a request says, or is no picture.
void save_open_models(std::string const& folder) {
  const auto save_open = [&](std::string const& name, char const* shape, Metadata changes = {}) {
    const bool conditioned = changes.contains("conditions");
    changes["name"] = name;
    save(folder + "/" + name + ".pt",
         conditioned ? "def forward(self, x, t, text):\n  return x * 0.5 + text.mean()\n"
                     : "def forward(self, x, t):\n  return x * 0.5\n",
         metadata_of_shape(shape, changes));
  };
  save_open("open", "3 * *", {{"decoding", "pixels"}});
  save_open("closed", "3 6 8", {{"decoding", "pixels"}});
  save_open("open_latent", "4 * *",
            {{"latent_scale", "0.5"}, {"guidance_scale", "3"}, {"conditions", "text_embedding float * 3"}});
  save_open("video", "4 * 16 16");
  save_open("video_of_8", "4 8 16 16");
  save_open("signal", "1 *");
  // A convolution of 2 to 5 channels with a kernel of 3, over 10 places: 2 * 10 * 2 * 5 * 3 operations, and as many
  // back.
  save(folder + "/convolution.pt",
       "def forward(self, x, t):\n  w = torch.ones([5, 2, 3])\n  y = torch.conv1d(x, w, None, [1], [1])\n"
       "  return torch.conv1d(y, w.transpose(0, 1), None, [1], [1])\n",
       metadata_of_shape("2 *", {{"name", "convolution"}}));
}

/// A network that says it is a DiT and has none of its weights.
void save_false_dit(std::string const& path) {
  Metadata metadata = of_pixels("false dit", "3");
  metadata.insert({{"architecture", "dit"},
                   {"width", "8"},
                   {"depth", "1"},
                   {"heads", "1"},
                   {"patch_size", "2"},
                   {"mlp_ratio", "4"},
                   {"e4m3_inputs", "1.5\n0\n2\n3\n"},
                   {"e4m3_weight_scales", "0.5\n0\n0\n0.25\n"}});
  save(path, "def forward(self, x, t):\n  return x\n", metadata);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = arguments[1];
  std::ifstream good(arguments[2], std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(good), {}};
  std::ofstream(folder + "/truncated.pt", std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  std::ofstream(folder + "/empty.pt");
  std::ofstream(folder + "/text.pt") << "this is a text and no network\n";
  save(folder + "/no_metadata.pt", "return x", "3", false);
  save(folder + "/four_channels.pt", "return x", "4");
  save(folder + "/nan.pt", "return x * float('nan')", "3");
  save(folder + "/throws.pt", "assert x.size(0) > 1000, 'no such luck'\n  return x", "3");
  save(folder + "/identity.pt", "return x", "3");  // good, for once
  // In the loop of a program, three times: attention, which is two products of [3, 32, 32] with [3, 32, 32], and one
  // more.
  save(folder + "/looped.pt",
       "w = torch.ones([32, 32])\n  for i in range(x.size(1)):\n"
       "    x = torch.matmul(torch.scaled_dot_product_attention(x, x, x), w)\n  return x",
       "3");
  // Not a number in the noisy half of a trajectory only.
  save(folder + "/nan_early.pt", "return x * float('nan') if int(t[0]) > 500 else x", "3");
  // Works until it sees a batch of one.
  save(folder + "/not_alone.pt", "assert x.size(0) > 1, 'not alone'\n  return x", "3");
  save(folder + "/wrong_shape.pt", "return x[:, :1]", "3");
  Metadata no_null = of_pixels("no null", "3");
  no_null["num_classes"] = "10";
  save(folder + "/no_null.pt", "def forward(self, x, t, labels):\n  return x\n", no_null);
  std::filesystem::copy_file(folder + "/identity.pt", folder + "/report_model.json",
                             std::filesystem::copy_options::overwrite_existing);
  std::filesystem::create_directories(folder + "/taken/000001-cat-seed1.png");  // where a picture would be
  save_latent_models(folder);
  save_open_models(folder);
  save_many_classes(folder + "/many_classes.pt");
  save(folder + "/long_name.pt", "def forward(self, x, t):\n  return x\n", of_pixels(std::string(80, 'n'), "3"));
  save_flow(folder + "/flow.pt");
  save_false_dit(folder + "/false_dit.pt");
  save(folder + "/latent_text_encoder.pt",
       "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
       "  found = torch.zeros([len(texts), 2, 3])\n"
       "  for i in range(len(texts)):\n    found[i] = found[i] + 0.25 * len(texts[i])\n"
       "  return {'text_embedding': found}\n"
       "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
       "  cut = torch.zeros([len(texts)], dtype=4)\n"
       "  for i in range(len(texts)):\n    cut[i] = max(0, len(texts[i]) - 9)\n"
       "  ids = torch.ones([len(texts), 2], dtype=4)\n  return ids, ids, cut\n",
       {{"format", "1"},
        {"kind", "text_encoder"},
        {"name", "length"},
        {"text_tokens", "2"},
        {"outputs", "text_embedding float 2 3"}});
  save(folder + "/text_encoder.pt",
       "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
       "  return {'text_embedding': torch.ones([len(texts), 3])}\n"
       "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
       "  ids = torch.ones([len(texts), 2], dtype=4)\n  return ids, ids, torch.zeros([len(texts)], dtype=4)\n",
       {{"format", "1"},
        {"kind", "text_encoder"},
        {"name", "ones"},
        {"text_tokens", "2"},
        {"outputs", "text_embedding float 3"}});
  // The good model, its weights apart.
  std::ofstream(folder + "/in_place.safetensors", std::ios::binary)
      << safetensors::file_of(safetensors::tensors_of(arguments[2], at::kHalf));
  std::ofstream(folder + "/in_place.txt")
      << safetensors::description_of(safetensors::texts_of(arguments[2]), {"in_place.safetensors"});
  // The folder is a pipeline, whose fast network is its slow one.
  std::ofstream(folder + "/pipeline.txt")
      << "tstitch pipeline 1\nname tiny\nnetwork latent.pt\nnetwork latent.pt\n"
         "text_encoder latent_text_encoder.pt\ndecoder decoder.pt\n"
         "profile diffusers-ddim\nsteps 4\nguidance 2\nratio 0.5\nnegative blurry\n";
}
