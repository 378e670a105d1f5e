/// @file
/// Attention for few rows: a CUDA kernel compiled for the width of a head at its first use.
///
/// For one picture a pass of a DiT is a chain of small kernels, and attention a fifth of its time when torch runs it,
/// by cuDNN, whose kernels are made for more. This one is faster there; for many rows, or long sequences, cuDNN's is.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "cuda_kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernel, which needs no headers. ELEMENT is 1 for __half, 2 for __nv_bfloat16; HEAD the width of a
/// head, a multiple of 8 up to 128; WARPS, KEYS and STAGES as AttentionShape has them.
inline constexpr char attention_kernel_source[] = R"cuda(
typedef unsigned short Element;
#if ELEMENT == 1
#define TYPE "f16"
#else
#define TYPE "bf16"
#endif

// Elements from a row in shared memory to the next: an odd number of 16 bytes, so that eight rows lie in other banks.
constexpr int STRIDE = HEAD / 8 % 2 ? HEAD : HEAD + 8;
constexpr int PIECES = HEAD / 8;  // of 16 bytes in a row
constexpr bool ODD = HEAD % 16 != 0;
#define INFINITE __int_as_float(0x7f800000)
constexpr int QUERIES = 16 * WARPS, THREADS = 32 * WARPS, CHUNK = KEYS * STRIDE;

__device__ unsigned pack(float low, float high) {
  unsigned result;
  asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

__device__ float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ unsigned address_of(const void* shared) { return (unsigned)__cvta_generic_to_shared(shared); }

// 16 bytes from global to shared memory, asynchronously; zeros where there are none.
__device__ void copy16(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ void load4(unsigned (&m)[4], unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(at) : "memory");
}
__device__ void load4_transposed(unsigned (&m)[4], unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(at) : "memory");
}
__device__ void load2(unsigned& a, unsigned& b, unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(at) : "memory");
}
__device__ void load2_transposed(unsigned& a, unsigned& b, unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(a), "=r"(b) : "r"(at) : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8]
__device__ void multiply16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c [16, 8] += a [16, 8] b [8, 8]
__device__ void multiply8(float (&c)[4], unsigned a0, unsigned a1, unsigned b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// softmax(scale q k^T) v: a block has one head and 16 WARPS of its queries, 16 a warp, and takes KEYS keys at a time,
// while the next ones are on their way. Of each row of scores it keeps the largest so far and what the exponentials
// come to, by which it shrinks earlier sums when a larger one comes (Dao et al. 2022, FlashAttention, arXiv 2205.14135,
// algorithm 1).
//
// qkv [images, tokens, 3, heads, HEAD], out [images, tokens, heads, HEAD]; scale in units of log2(e)
extern "C" __global__ void __launch_bounds__(THREADS) attention(const Element* qkv, Element* out, int tokens, int heads,
                                                                float scale) {
  extern __shared__ __align__(16) Element shared[];  // q [QUERIES], then STAGES of k [KEYS] and v [KEYS]
  Element* const ring = shared + QUERIES * STRIDE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int query_blocks = (tokens + QUERIES - 1) / QUERIES;
  const int first = blockIdx.x % query_blocks * QUERIES;
  const int image = blockIdx.x / query_blocks / heads, head = blockIdx.x / query_blocks % heads;
  const int pitch = 3 * heads * HEAD;
  const Element* const q = qkv + (long long)image * tokens * pitch + head * HEAD;
  const Element* const k = q + heads * HEAD;
  const Element* const v = k + heads * HEAD;
  const int chunks = (tokens + KEYS - 1) / KEYS;

  const auto copy_rows = [&](Element* to, const Element* from, int start, int rows) {
    for (int i = threadIdx.x; i < rows * PIECES; i += THREADS) {
      const int row = i / PIECES, piece = i % PIECES * 8;
      const bool there = start + row < tokens;
      copy16(address_of(to + row * STRIDE + piece), from + (long long)(there ? start + row : 0) * pitch + piece, there);
    }
  };
  const auto copy_chunk = [&](int chunk) {  // one group of copies, empty behind the last
    if (chunk < chunks) {
      Element* const to = ring + chunk % STAGES * 2 * CHUNK;
      copy_rows(to, k, chunk * KEYS, KEYS);
      copy_rows(to + CHUNK, v, chunk * KEYS, KEYS);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  copy_rows(shared, q, first, QUERIES);
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) copy_chunk(i);

  unsigned qs[PIECES / 2 + 1][4];
  float sums[PIECES][4] = {};
  float most[2] = {-INFINITE, -INFINITE}, total[2] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    copy_chunk(chunk + STAGES - 1);
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
    __syncthreads();
    if (chunk == 0) {
      const unsigned at = address_of(shared + (warp * 16 + lane % 16) * STRIDE + lane / 16 * 8);
#pragma unroll
      for (int s = 0; s < HEAD / 16; ++s) load4(qs[s], at + s * 32);
      if (ODD) {
        const Element* const last = shared + (warp * 16 + lane % 16) * STRIDE + HEAD - 8;
        load2(qs[PIECES / 2][0], qs[PIECES / 2][1], address_of(last));
      }
    }
    const Element* const keys = ring + chunk % STAGES * 2 * CHUNK;
    float scores[KEYS / 8][4] = {};
    const unsigned at_k = address_of(keys + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8);
#pragma unroll
    for (int n = 0; n < KEYS / 16; ++n) {
#pragma unroll
      for (int s = 0; s < HEAD / 16; ++s) {
        unsigned b[4];
        load4(b, at_k + (n * 16 * STRIDE + s * 16) * 2);
        multiply16(scores[2 * n], qs[s], b[0], b[1]);
        multiply16(scores[2 * n + 1], qs[s], b[2], b[3]);
      }
      if (ODD) {
        unsigned b0, b1;
        load2(b0, b1, address_of(keys + (n * 16 + lane % 16) * STRIDE + HEAD - 8));
        multiply8(scores[2 * n], qs[PIECES / 2][0], qs[PIECES / 2][1], b0);
        multiply8(scores[2 * n + 1], qs[PIECES / 2][0], qs[PIECES / 2][1], b1);
      }
    }
    if ((chunk + 1) * KEYS > tokens) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (chunk * KEYS + n * 8 + lane % 4 * 2 + i % 2 >= tokens) scores[n][i] = -INFINITE;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {  // rows lane / 4 and 8 more
      float now = most[h];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) now = fmaxf(now, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float shift = now * scale, shrink = exp2_of(most[h] * scale - shift);
      most[h] = now;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) sum += scores[n][i] = exp2_of(scores[n][i] * scale - shift);
      }
      total[h] = total[h] * shrink + sum;
#pragma unroll
      for (int n = 0; n < PIECES; ++n) sums[n][2 * h] *= shrink, sums[n][2 * h + 1] *= shrink;
    }
    const unsigned at_v = address_of(keys + CHUNK + lane % 16 * STRIDE + lane / 16 * 8);
#pragma unroll
    for (int s = 0; s < KEYS / 16; ++s) {
      unsigned p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] = pack(scores[2 * s + i / 2][i % 2 * 2], scores[2 * s + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < PIECES / 2; ++n) {
        unsigned b[4];
        load4_transposed(b, at_v + (s * 16 * STRIDE + n * 16) * 2);
        multiply16(sums[2 * n], p, b[0], b[1]);
        multiply16(sums[2 * n + 1], p, b[2], b[3]);
      }
      if (ODD) {
        unsigned b0, b1;
        load2_transposed(b0, b1, address_of(keys + CHUNK + (s * 16 + lane % 16) * STRIDE + HEAD - 8));
        multiply16(sums[PIECES - 1], p, b0, b1);
      }
    }
    __syncthreads();  // before copies take the place of what was read
  }
  // Through shared memory, where the warp's own queries were, so that whole rows are written.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
    const float inverse = 1 / total[h];
    Element* const row = shared + (warp * 16 + lane / 4 + 8 * h) * STRIDE + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < PIECES; ++n) {
      *(unsigned*)(row + n * 8) = pack(sums[n][2 * h] * inverse, sums[n][2 * h + 1] * inverse);
    }
  }
  __syncwarp();
  for (int i = lane; i < 16 * PIECES; i += 32) {
    const int row = warp * 16 + i / PIECES, piece = i % PIECES * 8;
    if (first + row >= tokens) continue;
    *(uint4*)(out + (((long long)image * tokens + first + row) * heads + head) * HEAD + piece) =
        *(const uint4*)(shared + row * STRIDE + piece);
  }
}
)cuda";

/// How the kernel works on a head of this width.
struct AttentionShape {
  int head;
  static constexpr int warps = 4;   ///< of a block, each of which has 16 queries
  static constexpr int keys = 128;  ///< at a time
  static constexpr int stages = 2;  ///< how many times that there is room for
  static constexpr int queries = 16 * warps;

  static bool fits(std::int64_t head) { return head % 8 == 0 && head >= 8 && head <= 128; }

  /// Bytes of shared memory: the queries, then keys and values of each stage.
  int shared() const { return (queries + stages * 2 * keys) * (head / 8 % 2 ? head : head + 8) * 2; }
};

/// @param element 1 float16, 2 bfloat16
inline CudaSource attention_kernel(int element, AttentionShape shape) {
  return {"attention",
          attention_kernel_source,
          {"-DELEMENT=" + std::to_string(element), "-DHEAD=" + std::to_string(shape.head),
           "-DWARPS=" + std::to_string(shape.warps), "-DKEYS=" + std::to_string(shape.keys),
           "-DSTAGES=" + std::to_string(shape.stages)}};
}

/// The kernel for an element and a width of a head on a GPU.
class AttentionKernel {
 public:
  /// @throws std::runtime_error when it cannot be had there
  AttentionKernel(int element, AttentionShape shape, c10::Device device)
      : shape_(shape), kernels_(attention_kernel(element, shape), device), attention_(kernels_.function("attention")) {
    kernels_.allow_shared(attention_, shape.shared());
  }

  /// @param qkv [n, tokens, 3, heads, head width], contiguous
  /// @param out [n, tokens, heads, head width], contiguous
  void operator()(at::Tensor const& qkv, at::Tensor const& out) const {
    void* qkv_data = qkv.data_ptr();
    void* out_data = out.data_ptr();
    int tokens = int(qkv.size(1)), heads = int(qkv.size(3));
    float scale = float(1 / (std::log(2.0) * std::sqrt(double(shape_.head))));
    std::array<void*, 5> arguments{&qkv_data, &out_data, &tokens, &heads, &scale};
    kernels_.start(attention_, blocks(qkv), 32 * shape_.warps, arguments.data(), shape_.shared());
  }

  static std::int64_t blocks(at::Tensor const& qkv) {
    return qkv.size(0) * qkv.size(3) * ((qkv.size(1) + AttentionShape::queries - 1) / AttentionShape::queries);
  }

 private:
  AttentionShape shape_;
  CudaKernels kernels_;
  void* attention_;
};

/// What one GPU has of the kernel.
class AttentionKernels {
 public:
  explicit AttentionKernels(c10::Device device)
      : device_(device),
        multiprocessors_(gpu_attribute(device.index(), 16)),
        shared_(gpu_attribute(device.index(), 81)),
        largest_shared_(gpu_attribute(device.index(), 97)) {}

  /// How many blocks run at once, of up to two on a multiprocessor.
  int blocks_at_once(AttentionShape shape) const {
    constexpr int reserved = 1024;  // bytes of each block
    return multiprocessors_ * std::min(2, shared_ / (shape.shared() + reserved));
  }

  /// The kernel for an element and a head, which stays; null where there is none.
  AttentionKernel const* get(int element, AttentionShape shape) const {
    const std::lock_guard lock(mutex_);
    const auto [found, is_new] = kernels_.try_emplace({element, shape.head});
    if (is_new && shape.shared() <= largest_shared_) {
      try {
        found->second.emplace(element, shape, device_);
      } catch (std::exception const&) {}  // torch has another way
    }
    return found->second ? &*found->second : nullptr;
  }

 private:
  c10::Device device_;
  int multiprocessors_, shared_, largest_shared_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int, int>, std::optional<AttentionKernel>> kernels_;
};

/// softmax(q k^T / sqrt(head width)) v by the kernel, where it is the faster way.
/// @param qkv [n, tokens, 3, heads, head width]
/// @param always also where another way is faster, as long as there is the kernel
/// @returns [n, tokens, heads, head width], or an undefined tensor
inline at::Tensor attention_of_few(at::Tensor const& qkv, bool always = false) {
  const int element = qkv.scalar_type() == at::kHalf ? 1 : qkv.scalar_type() == at::kBFloat16 ? 2 : 0;
  const std::int64_t head = qkv.size(4);
  if (!qkv.is_cuda() || !element || !AttentionShape::fits(head) || !qkv.is_contiguous()) return {};
  AttentionKernels const* const kernels = kernel_on<AttentionKernels>(qkv.device());
  if (!kernels) return {};
  const AttentionShape shape{int(head)};
  // As measured beside cuDNN on an H200.
  if (!always && (qkv.size(1) > 256 || AttentionKernel::blocks(qkv) > kernels->blocks_at_once(shape))) return {};
  AttentionKernel const* const kernel = kernels->get(element, shape);
  if (!kernel) return {};
  at::Tensor out = qkv.new_empty({qkv.size(0), qkv.size(1), qkv.size(3), head});
  (*kernel)(qkv, out);
  return out;
}

}  // namespace tstitch::detail
