/// @file
/// Writes safetensors files, and those of the networks that TorchScript files hold.
#pragma once

#include <ATen/core/Tensor.h>
#include <tstitch/base/text.hpp>
#include <tstitch/file/archive.hpp>
#include <tstitch/file/torchscript.hpp>

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace safetensors {

using Tensors = std::map<std::string, at::Tensor>;
using Texts = std::map<std::string, std::string>;

/// A file of this header.
inline std::string prefixed(std::string const& header, std::string const& data = "") {
  std::string bytes;
  for (int k = 0; k < 8; ++k) bytes += char(header.size() >> (8 * k) & 0xff);
  return bytes + header + data;
}

/// A file of these tensors, with metadata. Names are plain.
inline std::string file_of(Tensors const& tensors, Texts const& metadata = {}) {
  const auto quoted = [](std::string const& text) {
    std::string json = "\"";
    for (const char c : text)
      json += c == '\n' ? "\\n" : c == '"' ? "\\\"" : c == '\x1b' ? "\\u001b" : std::string(1, c);
    return json + '"';
  };
  std::string header, texts, data;
  for (auto const& [key, value] : metadata) {
    texts += (texts.empty() ? "" : ",") + quoted("tstitch/" + key) + ":" + quoted(value);
  }
  header = "{\"__metadata__\":{" + texts + "}";
  for (auto const& [name, tensor] : tensors) {
    const std::size_t begin = data.size();
    const at::Tensor dense = tensor.contiguous();
    data.append(static_cast<char const*>(dense.const_data_ptr()), dense.nbytes());
    const at::ScalarType type = tensor.scalar_type();
    std::string shape;
    for (const std::int64_t size : dense.sizes()) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    header += "," + quoted(name) + ":{\"dtype\":\"" +
              (type == at::kFloat    ? "F32"
               : type == at::kDouble ? "F64"
               : type == at::kHalf   ? "F16"
                                     : "BF16") +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  }
  return prefixed(header + "}  ", data);  // which may be filled up by spaces
}

/// Of a TorchScript file.
inline Tensors tensors_of(std::string const& script, at::ScalarType type) {
  Tensors found;
  const torch::jit::Module module = tstitch::load_torchscript_module(script);
  for (auto const& each : module.named_parameters()) found.emplace(each.name, each.value.detach().to(type));
  for (auto const& each : module.named_buffers()) found.emplace(each.name, each.value.detach().to(type));
  return found;
}

/// The metadata of a TorchScript file.
inline Texts texts_of(std::string const& script) {
  const tstitch::detail::Archive archive(tstitch::detail::open_file(tstitch::detail::torchscript_file, script));
  const std::string begin = "extra/tstitch/";
  Texts texts;
  for (auto const& [name, record] : archive.records()) {
    if (name.starts_with(begin)) texts.emplace(name.substr(begin.size()), archive.text(name));
  }
  return texts;
}

/// The text that describes a network.
inline std::string description_of(Texts texts, std::vector<std::string> const& weights) {
  texts.erase("format");
  std::string text = "tstitch network 1\n# a comment\n\n";
  for (auto const& [key, value] : texts) {
    for (std::string const& line : tstitch::words::split(value, '\n')) text += key + " " + line + "\n";
  }
  for (std::string const& each : weights) text += "weights " + each + "\n";
  return text;
}

}  // namespace safetensors
