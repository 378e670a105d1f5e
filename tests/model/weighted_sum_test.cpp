#include <tstitch/model/weighted_sum.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// [count], values that differ from tensor to tensor.
at::Tensor numbers(std::int64_t count, at::ScalarType type, double first) {
  const at::Tensor x = detail::host_tensor({count}, at::kDouble);
  for (std::int64_t i = 0; i < count; ++i) x.mutable_data_ptr<double>()[i] = std::sin(first + double(i));
  return x.to(type);
}

double largest(at::Tensor const& difference) {
  return difference.abs().max().item<double>();
}

}  // namespace

TEST_CASE("a weighted sum is what tensor operations give, whole blocks and less") {
  for (at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (std::int64_t count : {1, 7, 1023, 1024, 1025, 5000}) {
      std::vector<at::Tensor> x;
      WeightedSum sum;
      at::Tensor expected = at::Tensor(numbers(count, at::kDouble, 0)).zero_();
      for (int k = 0; k < 6; ++k) {
        x.push_back(numbers(count, type, k));
        sum.add(0.5 - k, x.back());
        expected.add_(x.back().to(at::kDouble), 0.5 - k);
        const at::Tensor value = sum.value();
        CHECK(value.scalar_type() == type);
        CHECK(largest(value.sub(expected)) <= (type == at::kFloat ? 4e-6 : 1e-14));
      }
    }
  }
}

TEST_CASE("a tensor that comes again is one term, and one of weight 0 is none") {
  const at::Tensor x = numbers(5, at::kDouble, 1), y = numbers(5, at::kDouble, 2);
  const at::Tensor infinite = numbers(5, at::kDouble, 0).fill_(std::numeric_limits<double>::infinity());
  CHECK(WeightedSum().add(1, x).add(2, y).add(3, x).value().equal(weighted_sum(4, x, 2, y)));
  CHECK(WeightedSum().add(1, x).add(0, infinite).value().equal(x));
  CHECK(WeightedSum().add(0, x).value().equal(x.mul(0)));
}

TEST_CASE("the sum is a tensor of its own") {
  const at::Tensor x = numbers(5, at::kDouble, 1), before = x.clone();
  WeightedSum().add(1, x).value().zero_();
  weighted_sum(1, x, 0, x).zero_();
  CHECK(x.equal(before));
}

TEST_CASE("tensors that are not plain go through tensor operations") {
  const at::Tensor x = numbers(12, at::kFloat, 1).view({3, 4}), y = numbers(12, at::kFloat, 2).view({4, 3}).t();
  CHECK(largest(weighted_sum(2, x, 3, y).sub(x.mul(2).add(y, 3))) < 1e-6);
  const at::Tensor half = x.to(at::kHalf);
  CHECK(weighted_sum(1, half, 1, half).scalar_type() == at::kHalf);
  const at::Tensor leaf = numbers(3, at::kDouble, 1).requires_grad_(true);
  weighted_sum(2, leaf, 3, numbers(3, at::kDouble, 2)).sum().backward();
  CHECK(leaf.grad().eq(2).all().item<bool>());
}
