// Tensors from files to a GPU. Without one this prints why it is skipped and ends.
#include <torch/csrc/jit/serialization/import.h>
#include <tstitch/file/stored_module.hpp>
#include <tstitch/file/torchscript.hpp>

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstddef>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "../catch.hpp"
#include "../stored_module.hpp"
#include "gpu.hpp"

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);
const at::Device cuda{at::kCUDA, 0};

detail::StoredModule stored(std::string const& path) {
  const detail::FileKind kind = detail::torchscript_file;
  return detail::StoredModule(detail::open_network(kind, path, detail::open_file(kind, path)));
}

}  // namespace

TEST_CASE("tensors of a file come to a GPU with the bits that they have on the host") {
  const std::string path = saved_in_places("places_gpu.pt", module_of_many_places());
  const torch::jit::Module expected = torch::jit::load(path);
  const std::vector<at::Tensor> wanted = tensors_in_places(expected);
  const bool inference = GENERATE(false, true), other_stream = GENERATE(false, true);
  const c10::InferenceMode mode(inference);
  const c10::impl::VirtualGuardImpl device(at::kCUDA);
  const c10::StreamGuard on(other_stream ? device.getStreamFromGlobalPool(cuda) : device.getStream(cuda));
  SECTION("one by one") {
    detail::StoredModule whole = stored(path);
    const std::vector<at::Tensor> all = tensors_in_places(whole.module());
    for (std::size_t k = 0; k < all.size(); ++k) {
      const at::Tensor there = whole.onto(cuda, all[k]);
      CHECK(there.device() == cuda);
      CHECK(there.scalar_type() == wanted[k].scalar_type());
      CHECK(there.strides() == wanted[k].strides());
      CHECK(there.cpu().equal(wanted[k]));
    }
  }
  SECTION("moved") {
    const c10::AutoGradMode no_gradients(false);
    detail::StoredModule whole = stored(path);
    detail::move(whole, cuda, at::kHalf);
    const std::vector<at::Tensor> all = tensors_in_places(whole.module());
    const std::size_t moved = whole.module().parameters().size() + whole.module().buffers().size();
    for (std::size_t k = 0; k < all.size(); ++k) {
      CHECK(all[k].is_cuda() == (k < moved));
      const bool rounded = k < moved && wanted[k].is_floating_point();
      CHECK(all[k].cpu().equal(rounded ? wanted[k].to(at::kHalf) : wanted[k]));
    }
  }
}

TEST_CASE("a damaged tensor is named when it comes to a GPU, in whatever piece it is damaged") {
  const torch::jit::Module module = module_of_many_places();
  const std::string path = saved_in_places("damaged_places_gpu.pt", module);
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes = (std::ostringstream() << file.rdbuf()).str();
  }
  const at::Tensor weight = module.attr("weight").toTensor();
  const std::size_t begin = bytes.find(std::string(static_cast<char const*>(weight.const_data_ptr()), 8000));
  REQUIRE(begin != std::string::npos);
  const std::size_t size = weight.nbytes();
  for (const std::size_t at : {std::size_t(0), size / 3, size / 2, size - 1}) {
    std::string damaged = bytes;
    damaged[begin + at] = char(damaged[begin + at] ^ 1);
    std::ofstream(path, std::ios::binary) << damaged;
    detail::StoredModule whole = stored(path);
    CHECK_THAT(message_of<c10::Error>([&] { whole.onto(cuda, whole.module().attr("weight").toTensor()); }),
               ContainsSubstring("' of the archive is damaged: its checksum differs"));
    CHECK_NOTHROW(whole.onto(cuda, whole.module().attr("half").toTensor()));
  }
  // One that becomes shorter while it is read.
  std::ofstream(path, std::ios::binary) << bytes;
  detail::StoredModule whole = stored(path);
  std::filesystem::resize_file(path, begin + size / 2);
  CHECK_THAT(message_of<c10::Error>([&] { whole.onto(cuda, whole.module().attr("weight").toTensor()); }),
             ContainsSubstring("the file became shorter while it was read"));
}
