/// @file
/// Attention for few rows: a CUDA kernel compiled for the width of a head at its first use.
///
/// For one picture a pass of a DiT is a chain of small kernels, and attention a fifth of its time when torch runs it,
/// by cuDNN, whose kernels are made for more.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "attention_kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernel, behind `attention_prelude`. HEAD is a multiple of 8 up to 128; WARPS, KEYS and STAGES are as
/// FewRowsShape has them.
inline constexpr char attention_few_rows_source[] = R"cuda(
typedef unsigned short Element;

// Elements from a row in shared memory to the next: an odd number of 16 bytes, so that eight rows lie in other banks.
constexpr int STRIDE = HEAD / 8 % 2 ? HEAD : HEAD + 8;
constexpr bool ODD = HEAD % 16 != 0;
constexpr int QUERIES = 16 * WARPS, THREADS = 32 * WARPS, CHUNK = KEYS * STRIDE;

__device__ unsigned address_of(const void* shared) { return (unsigned)__cvta_generic_to_shared(shared); }

// 16 bytes from global to shared memory, asynchronously; zeros where there are none.
__device__ void copy16(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// ROWS rows of a head, `pitch` elements apart, to shared memory; zeros behind the first `there`. Every thread has one
// piece of each STEP-th row, so that it divides but once.
template <int ROWS>
__device__ void copy_rows(Element* to, const Element* from, int pitch, int there) {
  constexpr int STEP = THREADS / PIECES;
  const int own = threadIdx.x / PIECES, piece = threadIdx.x % PIECES * 8;
  if (own >= STEP) return;
  const unsigned at = address_of(to + own * STRIDE + piece);
  from += (long long)own * pitch + piece;
#pragma unroll
  for (int row = 0; row < ROWS; row += STEP) {
    if (row + STEP > ROWS && own >= ROWS - row) break;
    copy16(at + row * STRIDE * 2, from + row * pitch, row + own < there);
  }
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
// qkv [images, tokens, 3, heads, HEAD], out [images, tokens, heads, HEAD], of QUANTISE times `factor` in e4m3; scale in
// units of log2(e)
extern "C" __global__ void __launch_bounds__(THREADS) attention(const Element* qkv, void* out, int tokens, int heads,
                                                                float scale, float factor) {
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

  const auto copy_chunk = [&](int chunk) {  // one group of copies, empty behind the last
    if (chunk < chunks) {
      Element* const to = ring + chunk % STAGES * 2 * CHUNK;
      const long long start = (long long)chunk * KEYS * pitch;
      copy_rows<KEYS>(to, k + start, pitch, tokens - chunk * KEYS);
      copy_rows<KEYS>(to + CHUNK, v + start, pitch, tokens - chunk * KEYS);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  copy_rows<QUERIES>(shared, q + (long long)first * pitch, pitch, tokens - first);
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
    const float inverse = (QUANTISE ? factor : 1) / total[h];
    Element* const row = shared + (warp * 16 + lane / 4 + 8 * h) * STRIDE;
#pragma unroll
    for (int n = 0; n < PIECES; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      const float low = sums[n][2 * h] * inverse, high = sums[n][2 * h + 1] * inverse;
      if constexpr (QUANTISE) {
        *(unsigned short*)((unsigned char*)row + column) = floats_to_e4m3s(low, high);
      } else {
        *(unsigned*)(row + column) = pack(low, high);
      }
    }
  }
  __syncwarp();
  for (int i = lane; i < 16 * PIECES; i += 32) {
    const int row = warp * 16 + i / PIECES, piece = i % PIECES * 8;
    if (first + row >= tokens) continue;
    const long long at = (((long long)image * tokens + first + row) * heads + head) * HEAD + piece;
    const Element* const from = shared + row * STRIDE;
    if constexpr (QUANTISE) {
      *(uint2*)((unsigned char*)out + at) = *(const uint2*)((const unsigned char*)from + piece);
    } else {
      *(uint4*)((Element*)out + at) = *(const uint4*)(from + piece);
    }
  }
}
)cuda";

/// How the kernel works on a head of this width.
struct FewRowsShape {
  int head;
  static constexpr int warps = 4;   ///< of a block, each of which has 16 queries
  static constexpr int keys = 128;  ///< at a time
  static constexpr int stages = 2;  ///< how many times that there is room for
  static constexpr int queries = 16 * warps;

  static bool fits(std::int64_t head) { return head % 8 == 0 && head >= 8 && head <= 128; }

  /// Bytes of shared memory: the queries, then keys and values of each stage.
  int shared() const { return (queries + stages * 2 * keys) * (head / 8 % 2 ? head : head + 8) * 2; }
};

inline CudaSource attention_few_rows(AttentionKind kind) {
  using Shape = FewRowsShape;
  return attention_source("attention_few_rows", attention_few_rows_source, kind,
                          {"-DWARPS=" + std::to_string(Shape::warps), "-DKEYS=" + std::to_string(Shape::keys),
                           "-DSTAGES=" + std::to_string(Shape::stages)});
}

/// The kernel of a kind on a GPU.
class FewRowsAttention {
 public:
  /// @throws std::runtime_error when it cannot be had there
  FewRowsAttention(AttentionKind kind, c10::Device device)
      : shape_{kind.head}, kernels_(attention_few_rows(kind), device), attention_(kernels_.function("attention")) {
    kernels_.allow_shared(attention_, shape_.shared());
    constexpr int reserved = 1024;  // bytes of each block
    const int fit = gpu_attribute(device.index(), shared_of_multiprocessor) / (shape_.shared() + reserved);
    blocks_at_once_ = gpu_attribute(device.index(), multiprocessors) * std::min(2, fit);
  }

  static bool fits(std::int64_t head) { return FewRowsShape::fits(head); }

  /// Whether this is faster than others, as measured on an H200: where all blocks run at once, of up to two on a
  /// multiprocessor.
  bool is_fast(at::Tensor const& qkv) const { return qkv.size(1) <= 256 && blocks(qkv) <= blocks_at_once_; }

  /// @param qkv [n, tokens, 3, heads, head width], contiguous
  /// @param out [n, tokens, heads, head width], contiguous, in the type of qkv or in e4m3, as the kind says
  /// @param factor with which it is multiplied before it becomes e4m3
  void operator()(at::Tensor const& qkv, at::Tensor const& out, double factor) const {
    void* qkv_data = qkv.data_ptr();
    void* out_data = out.data_ptr();
    int tokens = int(qkv.size(1)), heads = int(qkv.size(3));
    float scale = attention_scale(shape_.head), times = float(factor);
    std::array<void*, 6> arguments{&qkv_data, &out_data, &tokens, &heads, &scale, &times};
    kernels_.start(attention_, blocks(qkv), 32 * shape_.warps, arguments.data(), shape_.shared());
  }

 private:
  static std::int64_t blocks(at::Tensor const& qkv) {
    return qkv.size(0) * qkv.size(3) * ((qkv.size(1) + FewRowsShape::queries - 1) / FewRowsShape::queries);
  }

  FewRowsShape shape_;
  CudaKernels kernels_;
  void* attention_;
  std::int64_t blocks_at_once_ = 0;
};

}  // namespace tstitch::detail
