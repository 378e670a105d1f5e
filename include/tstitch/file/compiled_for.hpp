/// @file
/// What an AOTInductor package says that it was compiled for, read before any code of it runs. aot_inductor.hpp has the
/// keys.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "archive.hpp"
#include "file.hpp"
#include "metadata.hpp"
#include "metadata_reader.hpp"
#include "parallel_file.hpp"

namespace tstitch {

/// What a package was compiled for.
struct CompiledFor {
  at::ScalarType dtype = at::kFloat;
  std::string device = {};              ///< "cpu" or "cuda"
  std::string compute_capability = {};  ///< of the GPU, "9.0"
  std::string cpu_capability = {};      ///< empty where it is not said
  std::string torch = {};               ///< empty where it is not said
  std::string batch = {};               ///< the numbers of rows that it takes, "1-512" or "1 2 8"
};

namespace detail {

inline constexpr FileKind aot_inductor_file{"load_aot_inductor", "an AOTInductor package"};

/// The numbers of rows that a package takes.
struct BatchSizes {
  std::int64_t most = 0;                 ///< above 0: any number up to this one
  std::vector<std::int64_t> sizes = {};  ///< else these, rising

  std::int64_t largest() const { return most ? most : sizes.back(); }
  std::int64_t smallest() const { return most ? 1 : sizes.front(); }

  /// Which of the models takes so many, padded where they are fewer than it was compiled for.
  /// @param rows in [1, largest()]
  std::size_t model(std::int64_t rows) const {
    return std::size_t(std::lower_bound(sizes.begin(), sizes.end(), rows) - sizes.begin());
  }

  /// How many the model takes when it is given so many.
  std::int64_t padded(std::int64_t rows) const { return most ? rows : sizes[model(rows)]; }

  /// Of whole networks.
  std::vector<std::string> model_names() const {
    std::vector<std::string> names;
    if (most) names.emplace_back("model");
    for (const std::int64_t size : sizes) names.push_back(std::to_string(size) + "_rows");
    return names;
  }

  /// Those, and behind them for each its three parts, one after another.
  std::vector<std::string> names_in_parts() const {
    std::vector<std::string> names = model_names();
    for (std::string const& whole : model_names()) {
      // Torch takes for a model's all files of folders whose names begin with its own.
      for (char const* const part : {"forecast_embed_", "forecast_blocks_", "forecast_head_"}) {
        names.push_back(part + whole);
      }
    }
    return names;
  }
};

inline BatchSizes read_batch_sizes(MetadataReader const& file) {
  constexpr auto key = "batch", rule = "must be 1-N, or rising numbers, all in [1, 1000000]";
  const std::string text = file.text(key);
  const auto number = [&](std::string const& word) {
    const std::int64_t value = file.parse<std::int64_t>(key, word);
    if (value < 1 || value > 1'000'000) file.fail(key, rule, file.quote(text));
    return value;
  };
  if (text.starts_with("1-")) return {.most = number(text.substr(2))};
  BatchSizes batch;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    batch.sizes.push_back(number(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  for (std::size_t i = 1; i < batch.sizes.size(); ++i) {
    if (batch.sizes[i] <= batch.sizes[i - 1]) file.fail(key, rule, file.quote(text));
  }
  return batch;
}

/// What a package can compute in, by the names that it has for it.
inline std::vector<std::pair<char const*, at::ScalarType>> const& compiled_types() {
  static const std::vector<std::pair<char const*, at::ScalarType>> types{
      {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};
  return types;
}

inline CompiledFor read_compiled_for(MetadataReader const& file) {
  CompiledFor compiled;
  compiled.dtype = file.choice<at::ScalarType>("dtype", file.text("dtype"), compiled_types());
  compiled.device = file.text("device");
  file.choice<bool>("device", compiled.device, {{"cpu", false}, {"cuda", true}});
  if (compiled.device == "cuda") {
    compiled.compute_capability = file.require_line("compute_capability", file.text("compute_capability"));
  }
  compiled.cpu_capability = file.line("cpu_capability", "");
  compiled.torch = file.line("torch", "");
  compiled.batch = file.text("batch");
  return compiled;
}

/// @param file how messages call it: `source`
/// @throws std::runtime_error for what is no package
inline std::shared_ptr<Archive> open_package(std::string const& source,
                                             std::shared_ptr<caffe2::serialize::ReadAdapterInterface> const& file) {
  const auto archive = open_network(aot_inductor_file, source, file);
  if (!is_package(*archive)) refuse_file(aot_inductor_file, source, "another archive");
  return archive;
}

}  // namespace detail

/// What a package says that it was compiled for. No code of it runs.
/// @throws std::runtime_error naming the file and what is wrong with it
inline CompiledFor read_compiled_for(std::string const& path) {
  const std::string source = detail::quoted(path);
  const auto file = detail::open_file(detail::aot_inductor_file, path);
  return detail::reading(detail::aot_inductor_file, source, [&] {
    const auto archive = detail::open_package(source, file);
    return detail::read_compiled_for(detail::MetadataReader(*archive, source));
  });
}

}  // namespace tstitch
