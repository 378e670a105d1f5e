/// @file
/// Attention for many rows of up to 256 tokens on Hopper: a CUDA kernel compiled for the width of a head at its first
/// use.
///
/// It is made for what DiTs have, a sequence that fits into shared memory at once, and heads of 64 or 72 channels; of
/// the latter cuDNN makes 128.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "attention_hopper.hpp"
#include "attention_kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernel, behind `hopper_prelude`. HEAD is 64 or 72.
inline constexpr char attention_many_rows_source[] = R"cuda(
constexpr int TOKENS = 256;                 // that there is room for
constexpr int GROUPS = TOKENS / 64;         // of four warps, each of which has 64 queries
constexpr int THREADS = 128 * GROUPS + 32;  // and a warp that loads

// q, k and v are each the first 64 columns, in rows of 128 bytes whose 16-byte pieces are swizzled (piece i of row r is
// at i ^ r % 8), and behind them the other 8 columns, if there are any, in rows of 16 bytes.
constexpr int WIDE = TOKENS * 128, REST = HEAD > 64 ? TOKENS * 16 : 0;  // bytes
constexpr int MATRIX = WIDE + REST, ITEM = 3 * MATRIX;

// Columns of a matrix [images, tokens, 3 heads, HEAD] from this one on, of one image and all tokens.
__device__ void load(unsigned to, const TensorMap& map, unsigned barrier, int column, int head, int image) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, 0, %5}], [%2];"
               ::"r"(to), "l"(&map), "r"(barrier), "r"(column), "r"(head), "r"(image) : "memory");
}

// c [64, 64] (+)= a [64, 16] b [64, 16]^T; of a thread the columns 8 n + lane % 4 * 2 and one more of row lane / 4 of
// its warp's 16 rows, and of 8 rows below, are c[4 n] to c[4 n + 3].
__device__ void multiply_scores(float (&c)[32], Descriptor a, Descriptor b, int adds) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE
               " " NAMES_32 ", %32, %33, p, 1, 1, 0, 0;\n}"
               : ACCUMULATORS_32(c) : "l"(a), "l"(b), "r"(adds) : "memory");
}
// c [64, 8] += a [64, 16] b [16, 8]
__device__ void multiply_values(float (&c)[4], const unsigned (&a)[4], Descriptor b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 1;"
               : FOUR(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

// softmax(scale q k^T) v: a block has one head of one image after another, the next of which is on its way meanwhile,
// and each group of warps has 64 of its queries. They take 64 keys at a time, and keep of each row of scores the
// largest so far and what the exponentials come to, by which they shrink earlier sums when a larger one comes (Dao et
// al. 2022, FlashAttention, arXiv 2205.14135, algorithm 1).
//
// wide, rest: qkv [images, tokens, 3 heads, HEAD], by 64 and by 8 columns; out [images, tokens, heads, HEAD], of
// QUANTISE times `factor` in e4m3; scale in units of log2(e)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention(const __grid_constant__ TensorMap wide, const __grid_constant__ TensorMap rest, void* out, int tokens,
              int images, int heads, float scale, float factor) {
  extern __shared__ __align__(1024) char shared[];  // two items, zeros [64 rows of 16 bytes], barriers
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / 4;
  const unsigned at_shared = (unsigned)__cvta_generic_to_shared(shared);
  const unsigned at_zeros = at_shared + 2 * ITEM, at_full = at_zeros + 1024, at_empty = at_full + 16;
  const int chunks = (tokens + 63) / 64;
  const int first = (long long)images * heads * blockIdx.x / gridDim.x;
  const int last = (long long)images * heads * (blockIdx.x + 1) / gridDim.x;  // behind it
  int image = first / heads, head = first % heads;
  const auto next = [&] {
    if (++head == heads) head = 0, ++image;
  };

  if (threadIdx.x < 64) ((uint4*)(shared + 2 * ITEM))[threadIdx.x] = uint4{0, 0, 0, 0};
  if (threadIdx.x == 0) {
    for (int half = 0; half < 2; ++half) {
      start_barrier(at_full + half * 8, 1);
      start_barrier(at_empty + half * 8, 4 * GROUPS);
    }
  }
  fence_shared();
  __syncthreads();

  if (group == GROUPS) {
    if (lane > 0) return;
#pragma unroll 1
    for (int item = first; item < last; ++item, next()) {
      const int half = (item - first) % 2, turn = (item - first) / 2;
      const unsigned full = at_full + half * 8;
      wait(at_empty + half * 8, turn % 2 ^ 1);
      arrive_and_expect(full, 3 * chunks * 64 * (REST ? 144 : 128));
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const unsigned to = at_shared + half * ITEM + i * MATRIX;
        load(to, wide, full, 0, i * heads + head, image);
        if (REST) load(to + WIDE, rest, full, 64, i * heads + head, image);
      }
    }
    return;
  }

#pragma unroll 1
  for (int item = first; item < last; ++item, next()) {
    const int half = (item - first) % 2, turn = (item - first) / 2;
    const unsigned at_q = at_shared + half * ITEM, at_k = at_q + MATRIX, at_v = at_k + MATRIX;
    wait(at_full + half * 8, turn % 2);
    if (group < chunks) {
      float sums[32] = {}, sums_of_rest[4] = {};
      float most[2], total[2] = {};  // of rows lane / 4 and 8 more
      const Descriptor queries = swizzled(at_q + group * 8192);
      const unsigned at_queries_rest = at_q + WIDE + group * 1024;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float scores[32];
        const Descriptor keys = swizzled(at_k + chunk * 8192);
        begin_products();
#pragma unroll
        for (int s = 0; s < 4; ++s) multiply_scores(scores, queries + 2 * s, keys + 2 * s, s > 0);
        if (REST) {  // a product is of 16 columns, of which the last 8 are zeros
          const unsigned at_keys_rest = at_k + WIDE + chunk * 1024;
          multiply_scores(scores, described(at_queries_rest, at_zeros - at_queries_rest, 128),
                          described(at_keys_rest, at_zeros - at_keys_rest, 128), 1);
        }
        end_products();
        hold(scores);
        if ((chunk + 1) * 64 > tokens) {
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            if (chunk * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2 >= tokens) scores[i] = -INFINITE;
          }
        }
        float now[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          now[h] = scores[2 * h];
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            now[h] = fmaxf(now[h], fmaxf(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]));
          }
          now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffu, now[h], 1));
          now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffu, now[h], 2)) * scale;
        }
        if (chunk == 0) {
          most[0] = now[0], most[1] = now[1];
        } else if (__any_sync(0xffffffffu, now[0] > most[0] || now[1] > most[1])) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float larger = fmaxf(most[h], now[h]), shrink = exp2_of(most[h] - larger);
            most[h] = larger;
            total[h] *= shrink;
#pragma unroll
            for (int n = 0; n < 8; ++n) sums[4 * n + 2 * h] *= shrink, sums[4 * n + 2 * h + 1] *= shrink;
            if (REST) sums_of_rest[2 * h] *= shrink, sums_of_rest[2 * h + 1] *= shrink;
          }
        }
        unsigned p[4][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const float low = exp2_of(scores[4 * n + 2 * h] * scale - most[h]);
            const float high = exp2_of(scores[4 * n + 2 * h + 1] * scale - most[h]);
            total[h] += low + high;
            p[n / 2][n % 2 * 2 + h] = pack(low, high);
          }
        }
        hold(sums);
        if (REST) hold(sums_of_rest);
        const Descriptor values = swizzled(at_v + chunk * 8192);
        const Descriptor values_of_rest = described(at_v + WIDE + chunk * 1024, 128, 128);
        begin_products();
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          multiply_values(sums, p[s], values + 128 * s);
          if (REST) multiply_values(sums_of_rest, p[s], values_of_rest + 16 * s);
        }
        end_products();
        hold(sums);
        if (REST) hold(sums_of_rest);
      }
      // Through shared memory, where the group's own queries were, so that whole rows are written.
      asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
      char* const own = shared + half * ITEM + group * 8192 + warp % 4 * 2048;
      char* const own_rest = shared + half * ITEM + WIDE + group * 1024 + warp % 4 * 256;
      const auto place = [&](int row, int piece) {
        return piece < 8 ? own + row * 128 + (piece ^ row % 8) * 16 : own_rest + row * 16;
      };
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
        const float inverse = (QUANTISE ? factor : 1) / total[h];
#pragma unroll
        for (int n = 0; n < PIECES; ++n) {
          const float low = (n < 8 ? sums[n % 8 * 4 + 2 * h] : sums_of_rest[2 * h]) * inverse;
          const float high = (n < 8 ? sums[n % 8 * 4 + 2 * h + 1] : sums_of_rest[2 * h + 1]) * inverse;
          char* const to = place(lane / 4 + 8 * h, n);
          if constexpr (QUANTISE) {
            ((unsigned short*)to)[lane % 4] = floats_to_e4m3s(low, high);
          } else {
            ((unsigned*)to)[lane % 4] = pack(low, high);
          }
        }
      }
      __syncwarp();
      constexpr int BYTES = QUANTISE ? 1 : 2;
      const int query = group * 64 + warp % 4 * 16, row_bytes = heads * HEAD * BYTES;
      char* const to = (char*)out + (((long long)image * tokens + query) * heads + head) * HEAD * BYTES;
#pragma unroll
      for (int i = lane; i < 16 * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        if (query + row >= tokens) continue;
        if constexpr (QUANTISE) {
          *(uint2*)(to + row * row_bytes + piece * 8) = *(const uint2*)place(row, piece);
        } else {
          *(uint4*)(to + row * row_bytes + piece * 16) = *(const uint4*)place(row, piece);
        }
      }
    }
    fence_shared();
    __syncwarp();
    if (lane == 0) arrive(at_empty + half * 8);
  }
}
)cuda";

inline CudaSource attention_many_rows(AttentionKind kind) {
  CudaSource source =
      attention_source("attention_many_rows", std::string(hopper_prelude) + attention_many_rows_source, kind);
  source.architecture_alone = true;
  return source;
}

/// The kernel of a kind on a GPU.
class ManyRowsAttention {
 public:
  /// @throws std::runtime_error when it cannot be had there
  ManyRowsAttention(AttentionKind kind, c10::Device device)
      : kind_(kind),
        multiprocessors_(gpu_attribute(device.index(), multiprocessors)),
        kernels_(hopper_only(attention_many_rows(kind), device), device),
        attention_(kernels_.function("attention")) {
    kernels_.allow_shared(attention_, shared());
  }

  static bool fits(std::int64_t head) { return head == 64 || head == 72; }

  /// Whether there is room for so many tokens; it is faster than others then.
  static bool has_room(std::int64_t count) { return count <= tokens; }

  /// @param qkv [n, tokens, 3, heads, head width], contiguous, for which it has room
  /// @param out [n, tokens, heads, head width], contiguous, in the type of qkv or in e4m3, as the kind says
  /// @param factor with which it is multiplied before it becomes e4m3
  void operator()(at::Tensor const& qkv, at::Tensor const& out, double factor) const {
    TensorMap wide = map(qkv, 64), rest = map(qkv, 8);
    void* out_data = out.data_ptr();
    int images = int(qkv.size(0)), count = int(qkv.size(1)), heads = int(qkv.size(3));
    float scale = attention_scale(kind_.head), times = float(factor);
    std::array<void*, 8> arguments{&wide, &rest, &out_data, &count, &images, &heads, &scale, &times};
    kernels_.start(attention_, std::min(qkv.size(0) * qkv.size(3), std::int64_t(multiprocessors_)), threads,
                   arguments.data(), shared());
  }

 private:
  static constexpr int tokens = 256, threads = 544;

  /// Bytes of shared memory: two heads, zeros, four barriers.
  int shared() const { return 2 * 3 * tokens * kind_.head * 2 + 1024 + 32; }

  /// How to copy so many columns of a head, of all tokens: 64 are swizzled.
  TensorMap map(at::Tensor const& qkv, unsigned columns) const {
    const auto size = [&](int dimension) { return std::uint64_t(qkv.size(dimension)); };
    const std::uint64_t row = 2 * size(4);  // bytes
    const std::array<std::uint64_t, 4> sizes{size(4), 3 * size(3), size(1), size(0)};
    return tensor_map(kind_.element, qkv.data_ptr(), sizes, {row, row * sizes[1], row * sizes[1] * sizes[2]},
                      {columns, 1, unsigned(qkv.size(1) + 63) / 64 * 64, 1}, columns == 64);
  }

  AttentionKind kind_;
  int multiprocessors_;
  CudaKernels kernels_;
  void* attention_;
};

}  // namespace tstitch::detail
