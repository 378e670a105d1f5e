#include <unistd.h>
#include <tstitch/model/copy_kernel.hpp>
#include <tstitch/model/cuda_kernel.hpp>
#include <tstitch/model/weighted_sum.hpp>
#include <tstitch/sampler/noise.hpp>

#include <cstdlib>
#include <filesystem>

#include "../nvrtc.hpp"

using namespace tstitch;

TEST_CASE("the samplers' kernels compile for every kind of GPU, without one") {
  if (!has_nvrtc()) return;
  for (const int architecture : {80, 86, 89, 90, 100, 120}) {
    for (detail::CudaSource const& source :
         {detail::SumKernel::source(), detail::NoiseKernel::source(), detail::CopyKernel::source()}) {
      INFO(source.name << " " << architecture);
      REQUIRE(detail::compile_cuda(source, architecture).substr(1, 3) == "ELF");
    }
  }
}

TEST_CASE("what NVRTC refuses is told in its words") {
  if (!has_nvrtc()) return;
  const std::string message = message_of<std::runtime_error>([] {
    detail::compile_cuda({"broken", "__global__ void f() { return 1 }"}, 90);
  });
  CHECK_THAT(message,
             ContainsSubstring("tstitch: NVRTC must compile the kernel 'broken', got NVRTC_ERROR_COMPILATION"));
  CHECK_THAT(message, ContainsSubstring("error"));
}

TEST_CASE("without a GPU there are no kernels, and nothing is said") {
  if (detail::compute_capability(0)) return;
  CHECK_FALSE(detail::kernel_on<detail::SumKernel>({at::kCUDA, 0}));
  CHECK_FALSE(detail::kernel_on<detail::NoiseKernel>({at::kCUDA, 0}));
  CHECK(message_of<std::runtime_error>([] {
          detail::SumKernel({at::kCUDA, 0});
        }) == "tstitch: the GPU must have compute capability 8.0 or more, got 0.0");
}

TEST_CASE("compiled kernels are kept, and broken ones made again") {
  if (!has_nvrtc()) return;
  const detail::CudaSource source = detail::SumKernel::source();
  // A new folder for each run; see image_test.cpp for why the old one is not removed.
  const std::filesystem::path cache = TSTITCH_TEST_DATA "/kernels-" + std::to_string(getpid());
  setenv("TSTITCH_KERNEL_CACHE", cache.c_str(), 1);
  const auto kept = [&] { return std::distance(std::filesystem::directory_iterator(cache), {}); };
  const std::string code = detail::cached_cuda(source, 90);
  REQUIRE(kept() == 1);
  const std::filesystem::path file = std::filesystem::directory_iterator(cache)->path();
  CHECK(std::filesystem::file_size(file) == code.size());
  CHECK(detail::cached_cuda(source, 90) == code);
  std::filesystem::resize_file(file, 0);
  CHECK(detail::cached_cuda(source, 90).size() == code.size());
  CHECK(std::filesystem::file_size(file) == code.size());
  // Another kind of GPU, other options and another text are other files.
  detail::cached_cuda(source, 80);
  CHECK(kept() == 2);
  detail::CudaSource other = source;
  other.options.push_back("-DOTHER");
  detail::cached_cuda(other, 90);
  CHECK(kept() == 3);
  other.text += " ";
  detail::cached_cuda(other, 90);
  CHECK(kept() == 4);
  setenv("TSTITCH_KERNEL_CACHE", "", 1);
  CHECK(detail::kernel_cache_folder().empty());
  setenv("TSTITCH_KERNEL_CACHE", "/proc/nowhere", 1);
  CHECK(detail::cached_cuda(source, 90).size() == code.size());
  unsetenv("TSTITCH_KERNEL_CACHE");
}
