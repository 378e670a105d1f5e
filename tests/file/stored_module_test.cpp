#include <torch/csrc/jit/serialization/import.h>
#include <tstitch/file/stored_module.hpp>
#include <tstitch/file/torchscript.hpp>

#include <ATen/ops/quantize_per_channel.h>

#include <cstddef>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "../catch.hpp"
#include "../stored_module.hpp"

using namespace tstitch;

namespace {

detail::StoredModule stored(std::string const& path) {
  const detail::FileKind kind = detail::torchscript_file;
  return detail::StoredModule(detail::open_network(kind, path, detail::open_file(kind, path)));
}

void must_be_equal(torch::jit::Module const& found, torch::jit::Module const& expected) {
  const std::vector<at::Tensor> a = tensors_in_places(found), b = tensors_in_places(expected);
  REQUIRE(a.size() == b.size());
  for (std::size_t k = 0; k < a.size(); ++k) {
    CHECK(a[k].scalar_type() == b[k].scalar_type());
    CHECK(a[k].strides() == b[k].strides());
    CHECK(a[k].equal(b[k]));
  }
}

}  // namespace

TEST_CASE("a stored module has the tensors that torch reads, wherever they are in it") {
  const torch::jit::Module module = module_of_many_places();
  const std::string path = saved_in_places("places.pt", module);
  const torch::jit::Module expected = torch::jit::load(path);
  must_be_equal(expected, module);
  SECTION("all at once") {
    detail::StoredModule whole = stored(path);
    whole.read_all();
    must_be_equal(whole.module(), expected);
    CHECK(whole.module().attr("list").toTensorVector()[1].is_same(
        whole.module().attr("dict").toGenericDict().at("b").toTensor()));
  }
  SECTION("one by one, in any order") {
    detail::StoredModule whole = stored(path);
    std::vector<at::Tensor> const all = tensors_in_places(whole.module()), wanted = tensors_in_places(expected);
    for (std::size_t k = all.size(); k-- > 0;) CHECK(whole.onto(at::kCPU, all[k]).equal(wanted[k]));
    must_be_equal(whole.module(), expected);
  }
  SECTION("moved") {
    detail::StoredModule whole = stored(path);
    const c10::AutoGradMode no_gradients(false);
    detail::move(whole, at::kCPU, at::kHalf);
    std::vector<at::Tensor> const all = tensors_in_places(whole.module()), wanted = tensors_in_places(expected);
    const std::size_t moved = whole.module().parameters().size() + whole.module().buffers().size();
    for (std::size_t k = 0; k < all.size(); ++k) {
      const bool rounded = k < moved && wanted[k].is_floating_point();
      CHECK(all[k].equal(rounded ? wanted[k].to(at::kHalf) : wanted[k]));
    }
  }
  SECTION("from a stream") {
    std::ifstream file(path, std::ios::binary);
    const auto reader = std::make_shared<caffe2::serialize::IStreamAdapter>(&file);
    detail::StoredModule whole(detail::open_network(detail::torchscript_file, "the stream", reader));
    whole.read_all();
    must_be_equal(whole.module(), expected);
  }
  SECTION("by the function for looking into files") {
    must_be_equal(load_torchscript_module(path), expected);
  }
}

TEST_CASE("a module whose code runs when it is loaded finds its tensors there") {
  torch::jit::Module module("asks");
  module.register_buffer("numbers", numbers(5000, 1));
  module.register_attribute("first", c10::FloatType::get(), 0.0);
  module.define(
      "def __getstate__(self):\n  return (self.numbers, self.first)\n"
      "def __setstate__(self, state: Tuple[Tensor, float]):\n"
      "  self.numbers = state[0]\n"
      "  self.first = float(state[0][4999])\n"
      "def forward(self, x, t):\n  return x\n");
  const std::string path = saved_in_places("asks.pt", module);
  detail::StoredModule whole = stored(path);
  CHECK(whole.module().attr("first").toDouble() == Approx(5.999));
  CHECK(whole.module().attr("numbers").toTensor().equal(numbers(5000, 1)));
  whole.read_all();
  CHECK(whole.module().attr("numbers").toTensor().equal(numbers(5000, 1)));
}

TEST_CASE("a damaged tensor of a stored module is named when it is read") {
  const torch::jit::Module module = module_of_many_places();
  const std::string path = saved_in_places("damaged_places.pt", module);
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes = (std::ostringstream() << file.rdbuf()).str();
  }
  const at::Tensor numbers_of_list = module.attr("list").toTensorVector()[2];
  const std::size_t at = bytes.find(std::string(static_cast<char const*>(numbers_of_list.const_data_ptr()), 8000));
  REQUIRE(at != std::string::npos);
  bytes[at + 4001] = char(bytes[at + 4001] ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
  detail::StoredModule whole = stored(path);
  CHECK_NOTHROW(whole.onto(at::kCPU, whole.module().attr("list").toTensorVector()[1]));
  const auto must_refuse = [](auto const& action) {
    const std::string said = message_of<c10::Error>(action);
    CHECK_THAT(said, ContainsSubstring("entry 'data/"));
    CHECK_THAT(said, ContainsSubstring("' of the archive is damaged: its checksum differs"));
  };
  must_refuse([&] { whole.onto(at::kCPU, whole.module().attr("list").toTensorVector()[2]); });
  must_refuse([&] { whole.read_all(); });
}

TEST_CASE("a stored module has the scales of quantized tensors, which torch reads at once") {
  torch::jit::Module module("quantized");
  const at::Tensor real = numbers(600, -0.3).view({20, 30});
  const at::Tensor scales = numbers(20, 0.01, at::kDouble), zeros = numbers(20, 0, at::kLong);
  module.register_buffer("weight", at::quantize_per_channel(real, scales, zeros, 0, at::kQInt8));
  module.register_buffer("plain", numbers(5000, 1));
  module.define("def forward(self, x, t):\n  return x\n");
  detail::StoredModule whole = stored(saved_in_places("quantized.pt", module));
  whole.read_all();
  const at::Tensor weight = whole.module().attr("weight").toTensor();
  CHECK(weight.q_per_channel_scales().equal(scales));
  CHECK(weight.dequantize().equal(module.attr("weight").toTensor().dequantize()));
  CHECK(whole.module().attr("plain").toTensor().equal(numbers(5000, 1)));
}
