#include <tstitch/tensor/weighted_sum.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

/// [count], values that differ from tensor to tensor.
at::Tensor numbers(std::int64_t count, at::ScalarType type, double first) {
  const at::Tensor x = tstitch::detail::host_tensor({count}, at::kDouble);
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

TEST_CASE("what is there already can be scaled") {
  for (at::ScalarType type : {at::kFloat, at::kDouble}) {
    const double unit = type == at::kFloat ? 4e-6 : 1e-14;
    for (std::int64_t count : {5, 1024, 3000}) {
      const at::Tensor x = numbers(count, type, 1), y = numbers(count, type, 2), z = numbers(count, type, 3);
      const auto is = [&](WeightedSum const& sum, double of_x, double of_y, double of_z) {
        const at::Tensor expected = x.to(at::kDouble).mul(of_x).add(y, of_y).add(z, of_z);
        CHECK(largest(sum.value().sub(expected)) <= unit);
        CHECK(largest(sum.by_operations(type).sub(expected)) <= unit);
      };
      is(WeightedSum().add(2, x).scale(3), 6, 0, 0);
      is(WeightedSum().add(2, x).scale(3).add(1, y), 6, 1, 0);
      is(WeightedSum().add(2, x).add(3, y).scale(-0.5).add(4, z), -1, -1.5, 4);
      is(WeightedSum().add(2, x).add(3, y).scale(-0.5).add(4, x), 3, -1.5,
         0);  // x comes again, and is not the scaled one
      is(WeightedSum().add(2, x).add(3, y).scale(2).scale(2).add(1, z).add(2, z).add(1, x), 9, 12, 3);
      is(WeightedSum().add(2, x).add(3, y).scale(2), 4, 6, 0);
      is(WeightedSum().add(2, x).add(3, y).scale(2).add(0, z), 4, 6, 0);
    }
  }
}

TEST_CASE("terms of other types are brought to that of the result") {
  const at::Tensor x = numbers(7, at::kFloat, 1), y = numbers(7, at::kBFloat16, 2);
  const at::Tensor sum = WeightedSum().add(2, y).add(3, x).value(at::kFloat);
  CHECK(sum.scalar_type() == at::kFloat);
  CHECK(largest(sum.sub(x.mul(3).add(y.to(at::kFloat), 2))) < 1e-6);
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

TEST_CASE("the first channels of one image sum to the bits that they have among several") {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor all = numbers(5 * 6 * 35, type, 1).view({5, 6, 35}),
                     x = numbers(5 * 3 * 35, type, 2).view({5, 3, 35});
    const at::Tensor sum = weighted_sum(1.7, x, -0.3, all.narrow(1, 0, 3));
    for (std::int64_t i = 0; i < 5; ++i) {
      const at::Tensor alone = weighted_sum(1.7, x.narrow(0, i, 1), -0.3, all.narrow(0, i, 1).narrow(1, 0, 3));
      CHECK(alone.equal(sum.narrow(0, i, 1)));
    }
  }
}
