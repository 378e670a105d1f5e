// A program that includes no CUDA kernels samples on a GPU all the same, and says what it lacks. Without a GPU this
// prints why it is skipped and ends.
#include <tstitch/method/ddim.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "gpu.hpp"

using namespace tstitch;

namespace {
const bool gpu = require_gpus(1);
const at::Device cuda(at::kCUDA, 0);
const at::TensorOptions float32 = at::TensorOptions().dtype(at::kFloat);

std::int64_t times_said(std::string const& sentence) {
  const std::vector<std::string> said = diagnostics();
  return std::count(said.begin(), said.end(), "tstitch::" + sentence);
}
}  // namespace

TEST_CASE("without kernels noise has the same bits, and sums are those of torch's operations") {
  for (int time = 0; time < 2; ++time) {
    const at::Tensor here = noise({3, 4}, NoiseAddress::initial(), {3, 8, 8}, float32);
    const at::Tensor there = noise({3, 4}, NoiseAddress::initial(), {3, 8, 8}, float32.device(cuda));
    CHECK(there.device() == cuda);
    CHECK(there.cpu().equal(here));
    const WeightedSum sum = WeightedSum().add(0.25, there).add(-1.5, there.mul(2)).add(3, there.add(1));
    CHECK(sum.value().equal(sum.by_operations(at::kFloat)));
  }
  const std::string place =
      " a kernel, which a program has that includes <tstitch/tensor/cuda/kernels.hpp> in one of its "
      "files";
  CHECK(times_said("noise: the host takes the place of" + place) == 1);
  CHECK(times_said("WeightedSum: torch's operations take the place of" + place) == 1);
}
