/// @file
/// A matrix product in 8 bits by cuBLASLt, of which torch's operations offer less than it can do: its epilogue adds the
/// bias, takes GELU and rounds to e4m3 again, so that the wide middle of an MLP is written once, in one byte a value.
///
/// The library is the one that torch has loaded. What is used of it is declared here, so that programs need no header
/// of the CUDA Toolkit; the numbers are those of cublasLt.h and library_types.h, which have been the same since
/// CUDA 12.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernel.hpp"

namespace tstitch::detail {

/// x [m, in] weight^T + bias, then GELU in its tanh form, in e4m3.
struct GeluProductE4m3 {
  at::Tensor x;       ///< [m, in] e4m3, contiguous
  at::Tensor weight;  ///< [out, in] e4m3, contiguous
  at::Tensor bias;    ///< [out], float16 or bfloat16
  /// Each a float32 on the device: what x and the weight are multiplied with, and what GELU is before it is rounded.
  at::Tensor x_scale, weight_scale, out_factor;
};

/// cuBLASLt on one GPU.
class CublasLt {
 public:
  /// @throws std::runtime_error where it cannot be had
  explicit CublasLt(c10::Device device) : device_(device) {
    if (const int capability = compute_capability(device.index()); capability < 89) {
      throw std::runtime_error("tstitch: for 8 bits the GPU must have compute capability 8.9 or more, got " +
                               std::to_string(capability / 10) + "." + std::to_string(capability % 10));
    }
    const c10::DeviceGuard guard(device);
    check(library().get<int(void**)>("cublasLtCreate")(&handle_));
  }

  /// Queues it on the stream that is current there.
  /// @returns [m, out] e4m3; undefined when cuBLASLt has no such product here
  at::Tensor operator()(GeluProductE4m3 const& of) const {
    const at::ScalarType type = of.bias.scalar_type();
    if (type != at::kHalf && type != at::kBFloat16) return {};
    const std::int64_t m = of.x.size(0), in = of.x.size(1), out = of.weight.size(0);
    const std::lock_guard lock(mutex_);
    std::optional<Algorithm>& algorithm = algorithms_.try_emplace({m, in, out, type}, Algorithm{}).first->second;
    if (!algorithm) return {};
    const c10::DeviceGuard guard(device_);
    try {
      return run(of, *algorithm);
    } catch (std::runtime_error const& error) {  // not of memory, which torch reports in another way
      diagnose("gelu_product_e4m3", std::string("torch's operations take the place of one product: ") + error.what());
      algorithm.reset();
      return {};
    }
  }

 private:
  // cublasLtMatmulHeuristicResult_t
  struct Algorithm {
    std::uint64_t algorithm[8];
    std::size_t workspace;
    int state = -1;  // not looked for yet
    float waves;
    int reserved[4];
  };

  static SharedLibrary const& library() {
    static const SharedLibrary cublas_lt({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"});
    return cublas_lt;
  }

  static void check(int status) {
    if (status) throw std::runtime_error("tstitch: cuBLASLt must succeed, got status " + std::to_string(status));
  }

  /// An object of the library, which `destroy` ends.
  using Object = std::unique_ptr<void, int (*)(void*)>;

  static Object own(void* object, char const* destroy) { return Object(object, library().get<int(void*)>(destroy)); }

  template <class Value>
  static void set(char const* setter, Object const& object, int attribute, Value const& value) {
    check(library().get<int(void*, int, void const*, std::size_t)>(setter)(object.get(), attribute, &value,
                                                                           sizeof value));
  }

  /// Of a matrix that is stored column by column.
  static Object layout(int type, std::int64_t rows, std::int64_t columns) {
    void* made = nullptr;
    check(library().get<int(void**, int, std::uint64_t, std::uint64_t, std::int64_t)>("cublasLtMatrixLayoutCreate")(
        &made, type, std::uint64_t(rows), std::uint64_t(columns), rows));
    return own(made, "cublasLtMatrixLayoutDestroy");
  }

  at::Tensor run(GeluProductE4m3 const& of, Algorithm& algorithm) const {
    const std::int64_t m = of.x.size(0), in = of.x.size(1), out = of.weight.size(0);
    constexpr int float32 = 0, e4m3 = 28, compute_float32 = 68;
    const int narrow = of.bias.scalar_type() == at::kHalf ? 2 : 14;
    void* made = nullptr;
    check(library().get<int(void**, int, int)>("cublasLtMatmulDescCreate")(&made, compute_float32, float32));
    const Object product = own(made, "cublasLtMatmulDescDestroy");
    const auto describe = [&](int attribute, auto const& value) {
      set("cublasLtMatmulDescSetAttribute", product, attribute, value);
    };
    // Column by column, [m, in] is [in, m], and the result [out, m]: the weight comes first, transposed.
    constexpr int transposed_a = 3, transposed_b = 4, epilogue = 7, bias = 8, scale_a = 17, scale_b = 18, scale_d = 20,
                  fast_accumulation = 25, bias_type = 26;
    describe(transposed_a, std::int32_t(1));
    describe(transposed_b, std::int32_t(0));
    describe(epilogue, std::uint32_t(32 | 4));  // GELU, bias
    describe(bias, of.bias.const_data_ptr());
    describe(bias_type, std::int32_t(narrow));
    describe(scale_a, of.weight_scale.const_data_ptr());
    describe(scale_b, of.x_scale.const_data_ptr());
    describe(scale_d, of.out_factor.const_data_ptr());
    describe(fast_accumulation, std::int8_t(1));
    const Object a = layout(e4m3, in, out), b = layout(e4m3, in, m), c = layout(narrow, out, m),
                 d = layout(e4m3, out, m);
    if (algorithm.state != 0) {
      check(library().get<int(void**)>("cublasLtMatmulPreferenceCreate")(&made));
      const Object preference = own(made, "cublasLtMatmulPreferenceDestroy");
      constexpr int largest_workspace = 1;
      set("cublasLtMatmulPreferenceSetAttribute", preference, largest_workspace, std::uint64_t(32) << 20);
      int found = 0;
      check(library().get<int(void*, void*, void*, void*, void*, void*, void*, int, Algorithm*, int*)>(
          "cublasLtMatmulAlgoGetHeuristic")(handle_, product.get(), a.get(), b.get(), c.get(), d.get(),
                                            preference.get(), 1, &algorithm, &found));
      if (found < 1) throw std::runtime_error("tstitch: cuBLASLt has no such product");
      check(algorithm.state);
    }
    at::Tensor result = of.x.new_empty({m, out});
    const at::Tensor workspace = of.x.new_empty({std::int64_t(algorithm.workspace)});
    const float one = 1, none = 0;
    const c10::impl::VirtualGuardImpl streams(device_.type());
    check(library()
              .get<int(void*, void*, void const*, void const*, void*, void const*, void*, void const*, void const*,
                       void*, void*, void*, void const*, void*, std::size_t, void*)>("cublasLtMatmul")(
                  handle_, product.get(), &one, of.weight.const_data_ptr(), a.get(), of.x.const_data_ptr(), b.get(),
                  &none,
                  /*C, of another type than D*/ nullptr, c.get(), result.mutable_data_ptr(), d.get(),
                  algorithm.algorithm, workspace.mutable_data_ptr(), algorithm.workspace,
                  streams.getStream(device_).native_handle()));
    return result;
  }

  c10::Device device_;
  void* handle_ = nullptr;  // for the life of the program
  mutable std::mutex mutex_;
  /// By m, in, out and the type of the bias; none: there is none.
  mutable std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, at::ScalarType>, std::optional<Algorithm>>
      algorithms_;
};

/// The product on the GPU of x.
/// @returns [m, out] e4m3; undefined where it cannot be had
inline at::Tensor gelu_product_e4m3(GeluProductE4m3 const& of) {
  CublasLt const* const cublas_lt = kernel_on<CublasLt>(of.x.device());
  return cublas_lt ? (*cublas_lt)(of) : at::Tensor();
}

}  // namespace tstitch::detail
