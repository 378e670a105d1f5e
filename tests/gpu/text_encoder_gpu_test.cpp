// Text encoders on a GPU beside the CPU. Without one this prints why it is skipped and ends.
#include <tstitch/file/prompt_cache.hpp>
#include <tstitch/file/text_encoder.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "../catch.hpp"
#include "../network_metadata.hpp"
#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);

constexpr std::int64_t width = 64;
constexpr int depth = 3;

/// Bytes are the tokens, of which each sees those before it; layers of attention and an MLP, as text encoders have
/// them.
constexpr char code[] =
    "def rows(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
    "  ids: List[List[int]] = []\n"
    "  mask: List[List[int]] = []\n"
    "  cut: List[int] = []\n"
    "  for k in range(len(texts)):\n"
    "    row: List[int] = [1]\n"
    "    for byte in list(texts[k]):\n"
    "      row.append(ord(byte))\n"
    "    cut.append(max(0, len(row) - 12))\n"
    "    row = row[:12]\n"
    "    missing = 12 - len(row)\n"
    "    mask.append([1] * len(row) + [0] * missing)\n"
    "    ids.append(row + [0] * missing)\n"
    "  return torch.tensor(ids), torch.tensor(mask), torch.tensor(cut)\n"
    "def states(self, texts: List[str], shift: float) -> Dict[str, Tensor]:\n"
    "  ids, mask, cut = self.rows(texts)\n"
    "  ids = ids.to(self.words.device)\n"
    "  mask = mask.to(self.words.device)\n"
    "  x = torch.embedding(self.words, ids) + shift\n"
    "  seen = torch.ones([12, 12], dtype=11, device=x.device).tril()[None]\n"
    "  seen = torch.logical_and(seen, mask.to(11)[:, None])\n"
    "  for k in range(3):\n"
    "    y = torch.layer_norm(x, [64])\n"
    "    q, key, v = torch.matmul(y, self.mix[k]).chunk(3, 2)\n"
    "    logits = torch.matmul(q, key.transpose(1, 2)) * 0.125\n"
    "    logits = logits.masked_fill(torch.logical_not(seen), -30000.0)\n"
    "    x = x + torch.matmul(torch.softmax(logits, 2), v)\n"
    "    x = x + torch.matmul(torch.gelu(torch.matmul(torch.layer_norm(x, [64]), self.into[k])), self.back[k])\n"
    "  return {\"text_embedding\": x, \"text_mask\": mask}\n"
    "def forward(self, texts: List[str]) -> Dict[str, Tensor]:\n"
    "  return self.states(texts, 0.0)\n"
    "def encode_negative(self, texts: List[str]) -> Dict[str, Tensor]:\n"
    "  return self.states(texts, 0.5)\n"
    "def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:\n"
    "  return self.rows(texts)\n";

std::string saved(at::ScalarType type) {
  torch::jit::Module module("encoder");
  const auto weights = [&](char const* name, std::vector<std::int64_t> const& sizes, double size) {
    const at::Tensor tensor = detail::host_tensor(sizes, at::kFloat);
    float* const to = tensor.mutable_data_ptr<float>();
    for (std::int64_t k = 0; k < tensor.numel(); ++k)
      to[k] = float(size * std::sin(1.7 * double(k * k % 9973) + sizes.size()));
    module.register_parameter(name, tensor.to(type), false);
  };
  weights("words", {256, width}, 1);
  weights("mix", {depth, width, 3 * width}, 0.15);
  weights("into", {depth, width, 4 * width}, 0.15);
  weights("back", {depth, 4 * width, width}, 0.1);
  module.define(code);
  torch::jit::ExtraFilesMap files;
  const Metadata texts{{"format", "1"},          {"kind", "text_encoder"},
                       {"name", "small"},        {"text_tokens", "12"},
                       {"instruction", "Say: "}, {"outputs", "text_embedding float 12 64\ntext_mask int64 12"}};
  for (auto const& [key, value] : texts) files["tstitch/" + key] = value;
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  const std::string path = TSTITCH_TEST_DATA "/text_encoder_gpu.pt";
  module.save(path, files);
  return path;
}

const std::vector<std::string> prompts{"a fox", "", "a red house in the snow", "\xe7\x8c\xab"};
const at::Device cuda{at::kCUDA, 0};

/// The largest difference, relative to the root mean square of b.
double difference(at::Tensor const& a, at::Tensor const& b) {
  const at::Tensor exact = b.cpu().to(at::kDouble);
  const double most = a.cpu().to(at::kDouble).sub(exact).abs().max().item().toDouble();
  return most / exact.square().mean().sqrt().item().toDouble();
}

void must_be_near(TextEncoder const& encoder, TextEncoder const& expected, at::ScalarType type, double tolerance) {
  CHECK(encoder.device() == cuda);
  const auto host = expected.conditions(prompts, "blurry");
  // More than once, because kernels are compiled on the way.
  for (int round = 0; round < 4; ++round) {
    const auto found = encoder.conditions(prompts, "blurry");
    REQUIRE(found.size() == 2);
    for (at::Tensor const& each : {found[0].value, found[0].null}) {
      CHECK(each.device() == cuda);
      CHECK(each.scalar_type() == type);
    }
    CHECK(difference(found[0].value, host[0].value) < tolerance);
    CHECK(difference(found[0].null, host[0].null) < tolerance);
    CHECK(found[1].value.cpu().equal(host[1].value));
    CHECK(found[1].null.cpu().equal(host[1].null));
  }
  const TextTokens tokens_here = encoder.tokenize(prompts), tokens_there = expected.tokenize(prompts);
  CHECK(tokens_here.ids.equal(tokens_there.ids));
  CHECK(tokens_here.mask.equal(tokens_there.mask));
  CHECK(tokens_here.cut.equal(tokens_there.cut));
}

}  // namespace

TEST_CASE("a text encoder gives on a GPU what it gives on the CPU") {
  {
    const std::string path = saved(at::kFloat);
    const TextEncoder host = load_text_encoder(path);
    must_be_near(load_text_encoder(path, {.device = cuda}), host, at::kFloat, 1e-5);
  }
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const std::string path = saved(type);
    const TextEncoder host = load_text_encoder(path);
    CHECK(host.encode({"a"})[0].value.scalar_type() == at::kFloat);
    must_be_near(load_text_encoder(path, {.device = cuda}), host, type, type == at::kHalf ? 0.01 : 0.08);
    must_be_near(load_text_encoder(path, {.device = cuda, .dtype = at::kFloat}), host, at::kFloat, 1e-5);
  }
}

TEST_CASE("prompts that were encoded on a GPU are kept for it alone") {
  const std::string folder = TSTITCH_TEST_DATA "/text_encoder_gpu_cache", path = saved(at::kBFloat16);
  // Not remove_all: libtorch 2.11 exports a half of it.
  if (std::filesystem::is_directory(folder)) {
    std::vector<std::filesystem::path> before;
    for (auto const& each : std::filesystem::directory_iterator(folder)) before.push_back(each.path());
    for (auto const& each : before) std::filesystem::remove(each);
  }
  const PromptCache cache(folder);
  const TextEncoder first = cache.load(path, {.device = cuda}), host = cache.load(path);
  must_be_near(first, host, at::kBFloat16, 0.08);
  const auto before = first.conditions(prompts, "blurry"),
             again = cache.load(path, {.device = cuda}).conditions(prompts, "blurry");
  for (std::size_t k = 0; k < before.size(); ++k) {
    CHECK(again[k].value.device() == cuda);
    CHECK(again[k].value.equal(before[k].value));
    CHECK(again[k].null.equal(before[k].null));
  }
  CHECK(host.encode(prompts)[0].value.scalar_type() == at::kFloat);
  std::size_t files = 0;
  for ([[maybe_unused]] auto const& each : std::filesystem::directory_iterator(folder)) ++files;
  CHECK(files == 2 * (prompts.size() + 1));
}
