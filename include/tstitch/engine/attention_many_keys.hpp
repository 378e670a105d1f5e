/// @file
/// Attention to many keys on Hopper, for heads of 64 channels: a CUDA kernel compiled at its first use. cuDNN's is
/// slower there, and does not round to 8 bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "../tensor/cuda/driver.hpp"
#include "../tensor/cuda/kernel.hpp"
#include "../tensor/cuda/nvrtc.hpp"
#include "attention_hopper.hpp"
#include "attention_kernel.hpp"

namespace tstitch::detail {

/// CUDA C++ of the kernel, behind `hopper_prelude`. HEAD is 64.
inline constexpr char attention_many_keys_source[] = R"cuda(
constexpr int GROUPS = 3;                    // of four warps, each of which has 64 queries
constexpr int THREADS = 128 * GROUPS + 128;  // and four more, of which one loads
constexpr int REGISTERS = 160, OF_LOADING = 32;  // of a thread, from 128: 65536 are there for all
constexpr int KEYS = 128;                        // that are taken at a time
constexpr int MATRIX = KEYS * 128, STAGE = 2 * MATRIX, STAGES = 4;  // bytes of keys, and of keys and values
constexpr int QUERIES = 64 * 128;                                   // bytes of those of a group

// A head of some tokens of one image, of [tokens, images, 3 heads, HEAD].
__device__ void load(unsigned to, const TensorMap& map, unsigned barrier, int head, int image, int token) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {0, %3, %4, %5}], [%2];"
               ::"r"(to), "l"(&map), "r"(barrier), "r"(head), "r"(image), "r"(token) : "memory");
}

// The 64 accumulators of a thread.
#define NAMES_64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define ACCUMULATORS_64(c) \
  ACCUMULATORS_32(c), FOUR(c, 32), FOUR(c, 36), FOUR(c, 40), FOUR(c, 44), FOUR(c, 48), FOUR(c, 52), FOUR(c, 56), \
      FOUR(c, 60)

// c [64, 128] (+)= a [64, 16] b [128, 16]^T
__device__ void multiply_keys(float (&c)[64], Descriptor a, Descriptor b, int adds) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE
               " " NAMES_64 ", %64, %65, p, 1, 1, 0, 0;\n}"
               : ACCUMULATORS_64(c) : "l"(a), "l"(b), "r"(adds) : "memory");
}
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
__device__ void hold(unsigned (&p)[8][4]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(p[i / 4][i % 4])::"memory");
}

// Barriers of which one needs so many threads, those that wait and those that only say that they came.
__device__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ void come_by(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// softmax(scale q k^T) v: a block has 192 queries of one head of one image, and then others. Each group of warps takes
// 128 keys at a time, and keeps of each row of scores the largest so far and what the exponentials come to (Dao et al.
// 2022, FlashAttention, arXiv 2205.14135, algorithm 1). While it takes exponentials the product with the values before
// is on its way, and the groups multiply with keys in turns, so that they are not in step and the exponentials of one
// meet the products of others (Shah et al. 2024, FlashAttention-3, arXiv 2407.08608).
//
// qkv, and `map` of it, [tokens, images, 3 heads, HEAD]; out [queries, images, heads, HEAD], of QUANTISE times a factor in
// e4m3, the first one for the first tokens; scale in units of log2(e)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention(const __grid_constant__ TensorMap map, const unsigned short* qkv, void* out, int tokens, int queries,
              int images, int heads, float scale, int first_tokens, float first_factor, float factor) {
  extern __shared__ __align__(1024) char shared[];  // stages, queries, barriers
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / 4;
  const unsigned at_shared = (unsigned)__cvta_generic_to_shared(shared);
  const unsigned at_queries = at_shared + STAGES * STAGE, at_full = at_queries + GROUPS * QUERIES,
                 at_empty = at_full + STAGES * 8;
  const int chunks = (tokens + KEYS - 1) / KEYS, parts = (queries + 64 * GROUPS - 1) / (64 * GROUPS);
  const int items = parts * images * heads;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      start_barrier(at_full + stage * 8, 1);
      start_barrier(at_empty + stage * 8, 4 * GROUPS);
    }
  }
  fence_shared();
  __syncthreads();

  unsigned turn = 0;  // of all chunks
  if (group == GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(OF_LOADING));
    if (warp % 4 > 0 || lane > 0) return;
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const int head = item / parts % heads, image = item / parts / heads;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk, ++turn) {
        const unsigned stage = turn % STAGES, full = at_full + stage * 8, to = at_shared + stage * STAGE;
        wait(at_empty + stage * 8, turn / STAGES % 2 ^ 1);
        arrive_and_expect(full, STAGE);
#pragma unroll
        for (int part = 0; part < KEYS; part += 64) {
          load(to + part * 128, map, full, heads + head, image, chunk * KEYS + part);
          load(to + MATRIX + part * 128, map, full, 2 * heads + head, image, chunk * KEYS + part);
        }
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));

  // Barriers by their numbers, of which __syncthreads has 0.
  const int own_turn = 1 + group, next_turn = 1 + (group + 1) % GROUPS, of_group = 1 + GROUPS + group;
  if (group == GROUPS - 1) come_by(next_turn, 256);
  const auto full = [&](unsigned of) { wait(at_full + of % STAGES * 8, of / STAGES % 2); };
  const auto release = [&](unsigned of) {
    if (lane == 0) arrive(at_empty + of % STAGES * 8);
  };
  const auto keys_of = [&](unsigned of) { return swizzled(at_shared + of % STAGES * STAGE); };
  const auto values_of = [&](unsigned of) { return swizzled(at_shared + of % STAGES * STAGE + MATRIX); };
#pragma unroll 1
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int part = item % parts, head = item / parts % heads, image = item / parts / heads;
    const int first = part * 64 * GROUPS + group * 64;
    const int query = first + warp % 4 * 16 + lane / 4;  // and 8 more

    const unsigned own_queries = at_queries + group * QUERIES;
    meet(of_group, 128);  // the products with those before are done
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int piece = k * 128 + threadIdx.x % 128, of_row = piece % 8, row = min(first + piece / 8, tokens - 1);
      const uint4* const own = (const uint4*)(qkv + (((long long)row * images + image) * 3 * heads + head) * HEAD);
      *(uint4*)(shared + STAGES * STAGE + group * QUERIES + piece / 8 * 128 + (of_row ^ piece / 8 % 8) * 16) =
          own[of_row];
    }
    fence_shared();
    meet(of_group, 128);
    float scores[64], sums[32] = {};
    float most[2] = {-INFINITE, -INFINITE}, total[2] = {};
    unsigned p[8][4];

    // In turns.
    const auto multiply_with_keys = [&] {
      meet(own_turn, 256);
      begin_products();
#pragma unroll
      for (int s = 0; s < 4; ++s) multiply_keys(scores, swizzled(own_queries) + 2 * s, keys_of(turn) + 2 * s, s > 0);
      commit_products();
      come_by(next_turn, 256);
    };
    const auto multiply_with_values = [&] {
      const Descriptor values = values_of(turn - 1);
#pragma unroll
      for (int s = 0; s < 8; ++s) multiply_values(sums, p[s], values + 128 * s);
      commit_products();
    };
    // Makes exponentials of the scores; whether earlier sums must shrink, and by how much.
    float shrink[2];
    const auto exponentials = [&](int chunk) {
      if ((chunk + 1) * KEYS > tokens) {
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          if (chunk * KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2 >= tokens) scores[i] = -INFINITE;
        }
      }
      float now[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        now[h] = scores[2 * h];
#pragma unroll
        for (int n = 0; n < 16; ++n) {
          now[h] = fmaxf(now[h], fmaxf(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]));
        }
        now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffu, now[h], 1));
        now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffu, now[h], 2)) * scale;
      }
      const bool larger = __any_sync(0xffffffffu, now[0] > most[0] || now[1] > most[1]);
      if (larger) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float most_now = fmaxf(most[h], now[h]);
          shrink[h] = exp2_of(most[h] - most_now);
          most[h] = most_now;
          total[h] *= shrink[h];
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 16; ++n) {
          float &low = scores[4 * n + 2 * h], &high = scores[4 * n + 2 * h + 1];
          low = exp2_of(low * scale - most[h]);
          high = exp2_of(high * scale - most[h]);
          total[h] += low + high;
        }
      }
      return larger;
    };
    const auto round_exponentials = [&] {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 16; ++n) p[n / 2][n % 2 * 2 + h] = pack(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]);
      }
    };

    full(turn);
    hold(scores);
    multiply_with_keys();
    wait_products<0>();
    hold(scores);
    exponentials(0);
    round_exponentials();
    ++turn;
#pragma unroll 1
    for (int chunk = 1; chunk < chunks; ++chunk, ++turn) {
      full(turn);
      hold(scores);
      hold(sums);
      hold(p);
      multiply_with_keys();
      multiply_with_values();
      wait_products<1>();
      hold(scores);
      const bool larger = exponentials(chunk);
      wait_products<0>();
      hold(sums);
      hold(p);
      release(turn - 1);
      if (larger) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int n = 0; n < 8; ++n) sums[4 * n + 2 * h] *= shrink[h], sums[4 * n + 2 * h + 1] *= shrink[h];
        }
      }
      round_exponentials();
    }
    hold(sums);
    hold(p);
    begin_products();
    multiply_with_values();
    wait_products<0>();
    hold(sums);
    hold(p);
    release(turn - 1);

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
      const int row = query + 8 * h;
      const float inverse = (QUANTISE ? row < first_tokens ? first_factor : factor : 1) / total[h];
      if (row >= queries) continue;
      const long long at = (((long long)row * images + image) * heads + head) * HEAD + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float low = sums[4 * n + 2 * h] * inverse, high = sums[4 * n + 2 * h + 1] * inverse;
        if constexpr (QUANTISE) {
          *(unsigned short*)((char*)out + at + 8 * n) = floats_to_e4m3s(low, high);
        } else {
          *(unsigned*)((unsigned short*)out + at + 8 * n) = pack(low, high);
        }
      }
    }
  }
}
)cuda";

inline CudaSource attention_many_keys(AttentionKind kind) {
  CudaSource source =
      attention_source("attention_many_keys", std::string(hopper_prelude) + attention_many_keys_source, kind);
  source.architecture_alone = true;
  return source;
}

/// The kernel of a kind on a GPU.
class ManyKeysAttention {
 public:
  /// @throws std::runtime_error when it cannot be had there
  ManyKeysAttention(AttentionKind kind, c10::Device device)
      : kind_(kind),
        multiprocessors_(gpu_attribute(device.index(), multiprocessors)),
        kernels_(hopper_only(attention_many_keys(kind), device), device),
        attention_(kernels_.function("attention")) {
    kernels_.allow_shared(attention_, shared);
  }

  static bool fits(std::int64_t head) { return head == 64; }

  /// @param qkv [tokens, n, 3, heads, head width], contiguous
  /// @param out [queries, n, heads, head width], contiguous, in the type of qkv or in e4m3, as the kind says
  /// @param first_tokens to which the first factor belongs; the other belongs to the rest
  void operator()(at::Tensor const& qkv, at::Tensor const& out, std::int64_t first_tokens, double first_factor,
                  double factor) const {
    const auto size = [&](int dimension) { return std::uint64_t(qkv.size(dimension)); };
    const std::uint64_t row = 2 * size(4);  // bytes
    const std::array<std::uint64_t, 4> sizes{size(4), 3 * size(3), size(1), size(0)};
    TensorMap map = tensor_map(kind_.element, qkv.data_ptr(), sizes, {row, row * sizes[1], row * sizes[1] * sizes[2]},
                               {64, 1, 1, 64}, true);
    void* qkv_data = qkv.data_ptr();
    void* out_data = out.data_ptr();
    int tokens = int(qkv.size(0)), queries = int(out.size(0)), images = int(qkv.size(1)), heads = int(qkv.size(3)),
        first = int(first_tokens);
    float scale = attention_scale(kind_.head), of_first = float(first_factor), of_rest = float(factor);
    std::array<void*, 11> arguments{&map,   &qkv_data, &out_data, &tokens,   &queries, &images,
                                    &heads, &scale,    &first,    &of_first, &of_rest};
    const std::int64_t items = std::int64_t(queries + 191) / 192 * images * heads;
    kernels_.start(attention_, std::min(items, std::int64_t(multiprocessors_)), 512, arguments.data(), shared);
  }

 private:
  static constexpr int shared = 4 * (2 * 128 * 128 + 16) + 3 * 64 * 128;  // stages and their barriers, queries

  AttentionKind kind_;
  int multiprocessors_;
  CudaKernels kernels_;
  void* attention_;
};

}  // namespace tstitch::detail
