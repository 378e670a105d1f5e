/// @file
/// Writes pickles as torch.save does: values in dicts and lists, which Pickle and Python's torch.load read.
#pragma once

#include <ATen/core/Tensor.h>
#include <caffe2/serialize/inline_container.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace tstitch::detail {

/// One value after another; in a dict each key before its value.
class PickleWriter {
 public:
  void begin_dict() { code("}("); }
  void end_dict() { code("u"); }
  void begin_list() { code("]("); }
  void end_list() { code("e"); }

  void none() { code("N"); }
  void boolean(bool value) { code(value ? "\x88" : "\x89"); }

  void text(std::string_view text) {
    code("X");
    four_bytes(text.size());
    code(text);
  }

  void number(std::int64_t value) {
    code("\x8a\x08");  // of 8 bytes
    four_bytes(std::uint64_t(value));
    four_bytes(std::uint64_t(value) >> 32);
  }

  void real(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    code("G");
    for (int k = 8; k-- > 0;) code_ += char(bits >> (8 * k) & 0xFF);
  }

  /// @param dense on the host; its elements fill a block of memory, each once, in whichever order. The same block
  ///        again is written once
  /// @param sizes, strides  of what is read, which may have more rows of stride 0
  void tensor(at::Tensor const& dense, at::IntArrayRef sizes, at::IntArrayRef strides) {
    const auto [block, is_new] =
        blocks_.try_emplace({dense.const_data_ptr(), dense.nbytes(), dense.scalar_type()}, tensors_.size());
    if (is_new || dense.numel() == 0) {
      block->second = tensors_.size();
      tensors_.push_back(dense);
    }
    code("ctorch._utils\n_rebuild_tensor_v2\n((");
    text("storage");
    code("ctorch\n" + std::string(at::toString(dense.scalar_type())) + "Storage\n");
    text(std::to_string(block->second));
    text("cpu");
    number(dense.numel());
    code("tQ");
    number(0);
    numbers(sizes);
    numbers(strides);
    code(
        "\x89"  // requires no gradient
        "ccollections\nOrderedDict\n)RtR");
  }

  void tensor(at::Tensor const& dense) { tensor(dense, dense.sizes(), dense.strides()); }

  /// The file, whose value is complete: what torch.save would make of it.
  std::string archive() const {
    std::string file;
    caffe2::serialize::PyTorchStreamWriter writer([&](void const* bytes, std::size_t count) {
      file.append(static_cast<char const*>(bytes), count);
      return count;
    });
    const std::string pickle = "\x80\x02" + code_ + ".";
    writer.writeRecord("data.pkl", pickle.data(), pickle.size());
    writer.writeRecord("byteorder", "little", 6);
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      writer.writeRecord("data/" + std::to_string(k), tensors_[k].const_data_ptr(), tensors_[k].nbytes());
    }
    writer.writeEndOfFile();
    return file;
  }

 private:
  void code(std::string_view bytes) { code_ += bytes; }

  void four_bytes(std::uint64_t value) {
    for (int k = 0; k < 4; ++k) code_ += char(value >> (8 * k) & 0xFF);
  }

  void numbers(at::IntArrayRef values) {
    code("(");
    for (const std::int64_t each : values) number(each);
    code("t");
  }

  std::string code_ = {};
  std::vector<at::Tensor> tensors_ = {};  // kept, so that no other takes their memory
  std::map<std::tuple<void const*, std::size_t, at::ScalarType>, std::size_t> blocks_ = {};
};

}  // namespace tstitch::detail
