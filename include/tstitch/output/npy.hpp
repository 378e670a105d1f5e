/// @file
/// Tensors as files that numpy.load reads and numpy.save writes.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "../base/write_file.hpp"
#include "../file/file.hpp"
#include "../file/text_file.hpp"
#include "../tensor/host_tensor.hpp"

namespace tstitch {

/// @returns what stands before the numbers in a .npy file, version 1.0 (NumPy Enhancement Proposal 1), in C order; a
/// multiple of 64 bytes
/// @param descr numpy's word for the type: "<f4", "|u1", "<i8"
/// @throws std::invalid_argument for more sizes than that version has room for
inline std::string npy_header(std::string const& descr, at::IntArrayRef sizes) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : sizes) header += std::to_string(size) + ", ";
  header += "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');  // data begins at a multiple of 64
  header += '\n';
  if (header.size() > 0xFFFF) detail::refuse("npy_header", "sizes must fit in 65535 characters", double(sizes.size()));
  std::string file("\x93NUMPY\x01\x00", 8);
  file += char(header.size() & 0xFF);
  file += char(header.size() >> 8);
  return file + header;
}

/// @returns a .npy file, version 1.0: float32 in C order
/// @param tensor of any shape and floating type, on any device
/// @throws std::invalid_argument for other types
inline std::string encode_npy(at::Tensor const& tensor) {
  static_assert(std::endian::native == std::endian::little, "tstitch::encode_npy writes little-endian numbers");
  if (!tensor.defined() || !tensor.is_floating_point()) {
    detail::refuse("encode_npy", "the tensor must be of a floating type",
                   tensor.defined() ? at::toString(tensor.scalar_type()) : "an undefined tensor");
  }
  const at::Tensor values = tensor.to(at::kCPU, at::kFloat).contiguous();
  std::string file = npy_header("<f4", values.sizes());
  return file.append(reinterpret_cast<char const*>(detail::values_of<float>(values)), std::size_t(values.numel()) * 4);
}

/// @throws as encode_npy does; std::runtime_error when the file cannot be written; then there is no partial file
inline void write_npy(std::string const& path, at::Tensor const& tensor) {
  write_file(path, encode_npy(tensor));
}

namespace detail {

/// The header of a .npy file, a dict as Python writes it.
class NpyHeader {
 public:
  NpyHeader(std::string_view text, std::string const& source) : text_(text), source_(source) {}

  /// @returns what stands behind the key, up to the comma or brace that ends it
  std::string_view value(std::string const& key) const {
    const std::size_t at = text_.find("'" + key + "'");
    const std::size_t colon = at == std::string_view::npos ? at : text_.find(':', at + key.size());
    if (colon == std::string_view::npos) fail("a header with '" + key + "'", "none");
    std::string_view rest = text_.substr(colon + 1);
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    const bool tuple = rest.starts_with('(');
    const std::size_t end = rest.find_first_of(tuple ? ")" : ",}");
    if (end == std::string_view::npos) fail("a header that ends", "'" + words::printable(std::string(rest), 40) + "'");
    return rest.substr(0, end + (tuple ? 1 : 0));
  }

  at::ScalarType type() const {
    const std::string_view name = value("descr");
    for (auto const& [known, type] :
         {std::pair("'<f4'", at::kFloat), std::pair("'<f8'", at::kDouble), std::pair("'<f2'", at::kHalf)}) {
      if (name == known) return type;
    }
    fail("little-endian float16, float32 or float64 ('<f2', '<f4', '<f8')", words::printable(std::string(name), 40));
  }

  /// @param most elements
  std::vector<std::int64_t> sizes(std::uint64_t most) const {
    const std::string_view tuple = value("shape");
    std::vector<std::int64_t> sizes;
    std::uint64_t elements = 1;
    if (!tuple.starts_with('(')) fail("a header whose shape is a tuple", words::printable(std::string(tuple), 40));
    for (std::string part : words::split(std::string(tuple.substr(1, tuple.size() - 2)), ',')) {
      std::erase(part, ' ');
      if (part.empty()) continue;  // behind the last comma
      const auto size = words::number_of<std::int64_t>(part);
      if (!size || *size < 0 || sizes.size() == 16 || (*size > 0 && elements > most / std::uint64_t(*size))) {
        fail("a shape of at most 16 sizes and the elements that are in the file",
             words::printable(std::string(tuple), 60));
      }
      elements *= std::uint64_t(*size);
      sizes.push_back(*size);
    }
    return sizes;
  }

  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error("tstitch::read_npy: " + source_ + ": must have " + rule + ", got " + got);
  }

 private:
  std::string_view text_;
  std::string const& source_;
};

}  // namespace detail

/// @param file the bytes of a .npy file, version 1.0 to 3.0, of float16, float32 or float64 in C order
/// @param source how messages call it
/// @returns the tensor, on the CPU
/// @throws std::runtime_error for anything else
inline at::Tensor decode_npy(std::string_view file, std::string const& source = "the file") {
  static_assert(std::endian::native == std::endian::little, "tstitch::decode_npy reads little-endian numbers");
  const auto byte = [&](std::size_t i) { return std::size_t(static_cast<unsigned char>(file[i])); };
  const bool is_npy = file.size() > 12 && file.starts_with("\x93NUMPY") && byte(6) >= 1 && byte(6) <= 3;
  if (!is_npy) detail::refuse_file({"read_npy", "a .npy file"}, source, "something else");
  const std::size_t begin = byte(6) == 1 ? 10 : 12;
  std::size_t length = byte(8) | byte(9) << 8;
  if (byte(6) > 1) length |= byte(10) << 16 | byte(11) << 24;
  const detail::NpyHeader header(file.substr(begin, length), source);
  if (length > file.size() - begin) header.fail("a whole header", std::to_string(file.size()) + " bytes");
  if (header.value("fortran_order") != "False") header.fail("its numbers in C order", "fortran_order");
  const at::ScalarType type = header.type();
  const std::string_view data = file.substr(begin + length);
  const std::vector<std::int64_t> sizes = header.sizes(data.size() / at::elementSize(type));
  const at::Tensor tensor = detail::host_tensor(sizes, type);
  if (data.size() != tensor.nbytes()) {
    header.fail(std::to_string(tensor.nbytes()) + " bytes of numbers for its shape", std::to_string(data.size()));
  }
  if (!data.empty()) std::memcpy(tensor.mutable_data_ptr(), data.data(), data.size());
  return tensor;
}

/// @returns the tensor in a .npy file, see decode_npy
/// @throws std::runtime_error for a file that is something else, or cannot be read
inline at::Tensor read_npy(std::string const& path) {
  constexpr detail::FileKind kind{"read_npy", "a .npy file"};
  return decode_npy(detail::read_text(kind, path, std::numeric_limits<std::size_t>::max()), detail::quoted(path));
}

}  // namespace tstitch
