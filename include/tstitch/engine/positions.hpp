/// @file
/// The position embedding of a DiT for pictures of any size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../tensor/host_tensor.hpp"
#include "writer.hpp"

namespace tstitch::detail {

/// Fixed sines and cosines of places in two dimensions, as diffusers' PatchEmbed and position_table of
/// examples/export/dit.py compute them: places run from 0 to where those of a side of `base` patches end, whatever
/// their number; the first half of the channels encodes the column, the second half the row.
/// @param width a multiple of 4
/// @returns float32 [1, rows * columns, width], on the host
inline at::Tensor position_table(std::int64_t rows, std::int64_t columns, std::int64_t base, std::int64_t width) {
  const std::size_t frequencies = std::size_t(width / 4);
  const auto axis = [&](std::int64_t count) {
    std::vector<float> values;  // of each place sines, then cosines
    const float ratio = float(double(count) / double(base));
    for (std::int64_t i = 0; i < count; ++i) {
      // The place in float32, its angles in float64: so the networks were trained.
      const double place = float(i) / ratio;
      const auto angle = [&](std::size_t k) { return place * std::pow(10000.0, -(double(k) / double(frequencies))); };
      for (std::size_t k = 0; k < frequencies; ++k) values.push_back(float(std::sin(angle(k))));
      for (std::size_t k = 0; k < frequencies; ++k) values.push_back(float(std::cos(angle(k))));
    }
    return values;
  };
  const std::vector<float> of_rows = axis(rows), of_columns = axis(columns);
  const at::Tensor table = host_tensor({1, rows * columns, width}, at::kFloat);
  float* next = table.mutable_data_ptr<float>();
  const std::size_t half = 2 * frequencies;
  for (std::size_t row = 0; row < std::size_t(rows); ++row) {
    for (std::size_t column = 0; column < std::size_t(columns); ++column) {
      for (std::size_t k = 0; k < half; ++k) *next++ = of_columns[column * half + k];
      for (std::size_t k = 0; k < half; ++k) *next++ = of_rows[row * half + k];
    }
  }
  return table;
}

/// The tables of the sizes that were asked for last, in the type and on the device of the network. Threads may ask at
/// the same time.
class Positions {
 public:
  /// @param own [1, base * base, width], that of the size which the network was trained with
  Positions(at::Tensor own, std::int64_t base) : own_(std::move(own)), base_(base) {}

  /// @returns [1, rows * columns, width]
  at::Tensor operator()(std::int64_t rows, std::int64_t columns) const {
    if (rows == base_ && columns == base_) return own_;
    const std::lock_guard lock(mutex_);
    constexpr std::size_t most = 16;
    if (tables_.size() >= most && !tables_.contains({rows, columns})) tables_.clear();
    Table& table = tables_[{rows, columns}];
    if (!table.values.defined()) {
      table.values = position_table(rows, columns, base_, own_.size(2)).to(own_.device(), own_.scalar_type());
      table.writer.mark_written(table.values);
    }
    table.writer.wait(table.values);
    return table.values;
  }

 private:
  struct Table {
    at::Tensor values;
    Writer writer;
  };

  at::Tensor own_;
  std::int64_t base_;
  mutable std::mutex mutex_ = {};
  mutable std::map<std::pair<std::int64_t, std::int64_t>, Table> tables_ = {};
};

}  // namespace tstitch::detail
