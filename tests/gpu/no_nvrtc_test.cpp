// On a GPU where NVRTC is not installed, torch's operations do what the kernels would: the engine and the samplers
// work, and are a little slower. Without a GPU this prints why it is skipped and ends.
#include <ATen/Context.h>
#include <dlfcn.h>
#include <tstitch/engine/cuda_graph.hpp>
#include <tstitch/file/dit.hpp>
#include <tstitch/file/torchscript.hpp>
#include <tstitch/study/calibration.hpp>
#include <tstitch/tstitch.hpp>

#include <cstdlib>
#include <string_view>

#include "gpu.hpp"

/// The program's own, which the C library's is behind: there is no library of such a name.
extern "C" void* dlopen(char const* name, int mode) noexcept {
  static const auto real = reinterpret_cast<void* (*)(char const*, int)>(dlsym(RTLD_NEXT, "dlopen"));
  return name && std::string_view(name).rfind("libnvrtc.so", 0) == 0 ? nullptr : real(name, mode);
}

using namespace tstitch;

namespace {

const bool gpu = require_gpus(1);
const int no_cache = setenv("TSTITCH_KERNEL_CACHE", "", 1);  // what others compiled is not here either

const at::Device cuda(at::kCUDA, 0);
const std::vector<std::string> files{TSTITCH_MODELS "/cifar10_dit_small.pt", TSTITCH_MODELS "/cifar10_dit_large.pt"};

/// On a GPU TorchScript itself needs NVRTC.
std::vector<Network> cpu_networks() {
  return load_torchscript_networks(files, {.device = at::kCPU, .dtype = at::kFloat});
}

at::Tensor drawn(std::vector<Network> const& networks, auto update) {
  const Sampler sampler{networks[0].info().noise_schedule.value(), Stitch{0.4}, {.steps = 5}, update};
  return sampler.sample(networks, {.labels = {1, 7, 3}, .seeds = {4, 5, 6}, .guidance = {.scale = 1.5}}).images.cpu();
}

}  // namespace

TEST_CASE("there are no kernels") {
  CHECK(message_of<std::runtime_error>([] {
          tstitch::detail::SumKernel({at::kCUDA, 0});
        }) == "tstitch: must find NVRTC (libnvrtc.so), got none");
  CHECK_FALSE(tstitch::detail::kernel_on<tstitch::detail::NoiseKernel>(cuda));
  const at::Tensor qkv = tstitch::detail::host_tensor({2, 64, 3, 2, 64}, at::kHalf).zero_().to(cuda);
  CHECK_FALSE(tstitch::detail::dit_kernels(qkv.view({2, 64, 384})));
  CHECK_FALSE(tstitch::detail::attention_kernel(qkv).defined());
}

TEST_CASE("pictures are those of the CPU's TorchScript networks") {
  const std::vector<Network> oracle = cpu_networks();
  std::vector<Network> engines, graphs;
  for (std::string const& file : files) engines.push_back(load_dit(file, {.device = cuda, .dtype = at::kFloat}));
  for (Network const& engine : engines) graphs.push_back(captured(engine));
  const auto check = [&](auto update) {
    const at::Tensor expected = drawn(oracle, update), got = drawn(engines, update);
    CHECK(got.sub(expected).abs().max().item<float>() < 1e-4);  // a CPU and a GPU add up in different orders
    CHECK(drawn(graphs, update).equal(got));
  };
  check(DDIMUpdate{});
  check(DDPMUpdate{});
}

TEST_CASE("engines in 16 and 8 bits are near") {
  // torch takes cuDNN's attention in 16 bits on Hopper, and that asks for NVRTC itself.
  at::globalContext().setSDPUseCuDNN(false);
  const at::Tensor exact = drawn(cpu_networks(), DDIMUpdate{});
  const TorchScriptOptions half{.device = cuda, .dtype = at::kBFloat16};
  for (const bool eighth : {false, true}) {
    std::vector<Network> engines;
    for (std::string const& file : files) {
      engines.push_back(
          load_dit(file, half, {.e4m3_inputs = eighth ? largest_inputs(file, half) : std::vector<double>{}}));
    }
    const double off = drawn(engines, DDIMUpdate{}).sub(exact).square().mean().sqrt().item<double>();
    std::printf("%s: %.1e from float32\n", eighth ? "8 bits" : "bfloat16", off);
    CHECK(off < 0.04);  // rounding to 8 bits, in 4 layers of a block only, adds less than that to 16 everywhere
  }
}
