/// @file
/// Matrix products in 8 bits by cuBLASLt, of which torch's operations offer less than it can do. Its epilogue adds the
/// bias, and where that is wanted takes GELU and rounds to e4m3 again, so that the wide middle of an MLP is written
/// once, in one byte a value; and of the algorithms that it proposes the first is often not the fastest.
///
/// The library is the one that torch has loaded. What is used of it is declared here, so that programs need no header
/// of the CUDA Toolkit; the numbers are those of cublasLt.h and library_types.h, which have been the same since
/// CUDA 12.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../base/diagnostics.hpp"
#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernel.hpp"

namespace tstitch::detail {

/// x [m, in] weight^T + bias in the type of the bias; or GELU of that in its tanh form, in e4m3.
struct ProductE4m3 {
  at::Tensor x;       ///< [m, in] e4m3, contiguous
  at::Tensor weight;  ///< [out, in] e4m3, contiguous
  at::Tensor bias;    ///< [out], float16 or bfloat16
  /// Each a float32 on the device: what x and the weight are multiplied with, and what GELU is before it is rounded, or
  /// undefined, without GELU.
  at::Tensor x_scale, weight_scale, gelu_factor = {};
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

  /// Queues it on the stream that is current there. The first product of its sizes waits for the GPU, unless it is
  /// being captured.
  /// @param out [m, out], contiguous, in the type of the bias or in e4m3, is filled
  /// @returns whether cuBLASLt has such a product here
  bool operator()(ProductE4m3 const& of, at::Tensor const& out) const {
    const at::ScalarType type = of.bias.scalar_type();
    if (type != at::kHalf && type != at::kBFloat16) return false;
    const Sizes sizes{of.x.size(0),      of.x.size(1), of.weight.size(0), type, of.gelu_factor.defined(),
                      alignment(of, out)};
    const std::lock_guard lock(mutex_);
    std::optional<Algorithm>& algorithm = algorithms_.try_emplace(sizes, Algorithm{}).first->second;
    if (!algorithm) return false;
    const c10::DeviceGuard guard(device_);
    try {
      const Product product(of, out);
      if (algorithm->state != 0) algorithm = choose(product, of, out);
      run(product, *algorithm, of, out);
      return true;
    } catch (std::runtime_error const& error) {  // not of memory, which torch reports in another way
      diagnose("product_e4m3", std::string("torch's operations take the place of one product: ") + error.what());
      algorithm.reset();
      return false;
    }
  }

 private:
  /// m, in, out, the type of the bias, whether GELU is taken, and what all addresses are multiples of.
  using Sizes = std::tuple<std::int64_t, std::int64_t, std::int64_t, at::ScalarType, bool, std::uint32_t>;

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

  /// What cuBLASLt is told of a product. Column by column, [m, in] is [in, m], and the result [out, m]: the weight
  /// comes first, transposed.
  struct Product {
    Product(ProductE4m3 const& of, at::Tensor const& out) {
      const std::int64_t m = of.x.size(0), in = of.x.size(1), width = of.weight.size(0);
      constexpr int float32 = 0, e4m3 = 28, compute_float32 = 68;
      const int narrow = of.bias.scalar_type() == at::kHalf ? 2 : 14;
      void* made = nullptr;
      check(library().get<int(void**, int, int)>("cublasLtMatmulDescCreate")(&made, compute_float32, float32));
      what = own(made, "cublasLtMatmulDescDestroy");
      const auto describe = [&](int attribute, auto const& value) {
        set("cublasLtMatmulDescSetAttribute", what, attribute, value);
      };
      constexpr int transposed_a = 3, transposed_b = 4, epilogue = 7, bias = 8, scale_a = 17, scale_b = 18,
                    scale_d = 20, fast_accumulation = 25, bias_type = 26;
      constexpr std::uint32_t with_bias = 4, with_gelu = 32;
      const bool gelu = of.gelu_factor.defined();
      describe(transposed_a, std::int32_t(1));
      describe(transposed_b, std::int32_t(0));
      describe(epilogue, gelu ? with_bias | with_gelu : with_bias);
      describe(bias, of.bias.const_data_ptr());
      describe(bias_type, std::int32_t(narrow));
      describe(scale_a, of.weight_scale.const_data_ptr());
      describe(scale_b, of.x_scale.const_data_ptr());
      if (gelu) describe(scale_d, of.gelu_factor.const_data_ptr());
      describe(fast_accumulation, std::int8_t(1));
      a = layout(e4m3, in, width);
      b = layout(e4m3, in, m);
      c = layout(narrow, width, m);
      d = layout(out.scalar_type() == at::kFloat8_e4m3fn ? e4m3 : narrow, width, m);
    }

    Object what = own(nullptr, "cublasLtMatmulDescDestroy"), a = own(nullptr, "cublasLtMatrixLayoutDestroy"),
           b = own(nullptr, "cublasLtMatrixLayoutDestroy"), c = own(nullptr, "cublasLtMatrixLayoutDestroy"),
           d = own(nullptr, "cublasLtMatrixLayoutDestroy");
  };

  /// A power of two that all of them are multiples of, up to what the library asks for at most.
  static std::uint32_t alignment(ProductE4m3 const& of, at::Tensor const& out) {
    const auto address = [](at::Tensor const& tensor) { return reinterpret_cast<std::uintptr_t>(tensor.data_ptr()); };
    const std::uintptr_t bits = address(of.x) | address(of.weight) | address(out) | 256;
    return std::uint32_t(bits & -bits);
  }

  /// Best first, as the library thinks.
  std::vector<Algorithm> proposed(Product const& product, std::uint32_t aligned) const {
    void* made = nullptr;
    check(library().get<int(void**)>("cublasLtMatmulPreferenceCreate")(&made));
    const Object preference = own(made, "cublasLtMatmulPreferenceDestroy");
    const auto prefer = [&](int attribute, auto const& value) {
      set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value);
    };
    constexpr int largest_workspace = 1, alignments_of_a_to_d = 5;
    prefer(largest_workspace, std::uint64_t(32) << 20);
    for (int matrix = 0; matrix < 4; ++matrix) prefer(alignments_of_a_to_d + matrix, aligned);
    constexpr int most = 8;
    std::vector<Algorithm> found(most);
    int count = 0;
    check(library().get<int(void*, void*, void*, void*, void*, void*, void*, int, Algorithm*, int*)>(
        "cublasLtMatmulAlgoGetHeuristic")(handle_, product.what.get(), product.a.get(), product.b.get(),
                                          product.c.get(), product.d.get(), preference.get(), most, found.data(),
                                          &count));
    found.resize(std::size_t(count));
    std::erase_if(found, [](Algorithm const& each) { return each.state != 0; });
    if (found.empty()) throw std::runtime_error("tstitch: cuBLASLt has no such product");
    return found;
  }

  /// Of what the library proposes, what takes the least time here. Only what gives the very bits of the first counts:
  /// the choice changes the time and nothing else.
  Algorithm choose(Product const& product, ProductE4m3 const& of, at::Tensor const& out) const {
    const std::vector<Algorithm> all = proposed(product, alignment(of, out));
    if (all.size() == 1 || is_captured()) return all[0];
    try {
      return fastest(all, of, out);
    } catch (c10::OutOfMemoryError const&) {
      diagnose("product_e4m3", "takes the first algorithm of a product, because memory for trying others ran out");
      return all[0];
    }
  }

  Algorithm fastest(std::vector<Algorithm> const& all, ProductE4m3 const& of, at::Tensor const& out) const {
    // What the product is of may be all zeros as yet. Rows of the weight are numbers of the same kind, scaled so that
    // the products are about 1 and GELU does not leave zeros and the largest number alone.
    const std::int64_t m = of.x.size(0), width = of.weight.size(0);
    ProductE4m3 like = of;
    like.x = of.weight.view(at::kByte).repeat({(m + width - 1) / width, 1}).narrow(0, 0, m).view(at::kFloat8_e4m3fn);
    const at::Tensor square = of.weight.to(at::kFloat).square_().mean();
    if (!(square.item<float>() > 0)) return all[0];  // zeros tell no algorithm from another
    like.x_scale = of.weight_scale.mul(square).mul_(std::sqrt(double(of.x.size(1)))).reciprocal_();
    const at::Tensor first = out.new_empty(out.sizes()), other = out.new_empty(out.sizes());
    const Product of_like(like, out);
    run(of_like, all[0], like, first);
    const auto seconds = [&](Algorithm const& algorithm) {
      constexpr int times = 5;
      const c10::Stream stream = current_stream();
      c10::Event begin(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT),
          end(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT);
      begin.record(stream);
      for (int i = 0; i < times; ++i) run(of_like, algorithm, like, other);
      end.record(stream);
      end.synchronize();
      return begin.elapsedTime(end);
    };
    std::size_t best = 0;
    double least = std::min(seconds(all[0]), seconds(all[0]));
    for (std::size_t k = 1; k < all.size(); ++k) {
      try {
        other.view(at::kByte).zero_();
        run(of_like, all[k], like, other);
        if (!other.view(at::kByte).equal(first.view(at::kByte))) continue;
        // Less by what two measurements of the same may differ.
        const double taken = std::min(seconds(all[k]), seconds(all[k]));
        if (taken < 0.98 * least) best = k, least = taken;
      } catch (std::runtime_error const&) {
        continue;  // proposed, and then refused
      }
    }
    return all[best];
  }

  c10::Stream current_stream() const { return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_); }

  /// Whether what is queued now becomes part of a graph.
  bool is_captured() const {
    int status = 0;
    return cuda_driver().get<int(void*, int*)>("cuStreamIsCapturing")(current_stream().native_handle(), &status) ||
           status != 0;
  }

  void run(Product const& product, Algorithm const& algorithm, ProductE4m3 const& of, at::Tensor const& out) const {
    const at::Tensor workspace = of.x.new_empty({std::int64_t(algorithm.workspace)});
    const float one = 1, none = 0;
    check(library()
              .get<int(void*, void*, void const*, void const*, void*, void const*, void*, void const*, void const*,
                       void*, void*, void*, void const*, void*, std::size_t, void*)>("cublasLtMatmul")(
                  handle_, product.what.get(), &one, of.weight.const_data_ptr(), product.a.get(), of.x.const_data_ptr(),
                  product.b.get(), &none,
                  /*C, of which there is none*/ of.gelu_factor.defined() ? nullptr : out.const_data_ptr(),
                  product.c.get(), out.mutable_data_ptr(), product.d.get(), algorithm.algorithm,
                  workspace.mutable_data_ptr(), algorithm.workspace, current_stream().native_handle()));
  }

  c10::Device device_;
  void* handle_ = nullptr;  // for the life of the program
  mutable std::mutex mutex_;
  mutable std::map<Sizes, std::optional<Algorithm>> algorithms_;  ///< none: there is none
};

/// The product on the GPU of x.
/// @param out [m, out], contiguous, in the type of the bias, or in e4m3 for GELU, is filled
/// @returns whether it can be had
inline bool product_e4m3(ProductE4m3 const& of, at::Tensor const& out) {
  CublasLt const* const cublas_lt = kernel_on<CublasLt>(of.x.device());
  return cublas_lt && (*cublas_lt)(of, out);
}

}  // namespace tstitch::detail
