/// @file
/// Text encoders from TorchScript files that take texts, as examples/export/export_text_encoder.py writes them. Opt-in.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../model/text_encoder.hpp"
#include "../tensor/host_tensor.hpp"
#include "../tensor/torch_error.hpp"
#include "file.hpp"
#include "metadata.hpp"
#include "stored_module.hpp"
#include "torchscript.hpp"

namespace tstitch {
namespace detail {

inline constexpr FileKind text_encoder_file{"load_text_encoder", "a TorchScript file of a text encoder"};

/// Rows of several tensors below one another.
/// @throws std::runtime_error where they are not of one size and type
inline at::Tensor rows_of(std::string const& place, std::string const& name, std::vector<at::Tensor> const& parts,
                          at::Device device) {
  if (parts.size() == 1) return parts[0].to(device);
  at::Tensor const& first = parts[0];
  std::int64_t count = 0;
  for (at::Tensor const& part : parts) {
    if (part.dim() < 1 || part.dim() != first.dim() || part.sizes().slice(1) != first.sizes().slice(1) ||
        part.scalar_type() != first.scalar_type()) {
      throw std::runtime_error("tstitch::" + place + ": '" + printable(name) +
                               "' must be of one size and type for all texts, got " + shape_text(part.sizes()) +
                               " and " + shape_text(first.sizes()));
    }
    count += part.size(0);
  }
  std::vector<std::int64_t> sizes = first.sizes().vec();
  sizes[0] = count;
  const at::Tensor all = first.to(device).new_empty(sizes);
  std::int64_t begin = 0;
  for (at::Tensor const& part : parts) {
    all.narrow(0, begin, part.size(0)).copy_(part);
    begin += part.size(0);
  }
  return all;
}

/// A module whose forward and tokenize take texts, as callables.
struct ScriptedTextEncoder {
  std::shared_ptr<torch::jit::Module> module;
  std::shared_ptr<WarmUp> warm_up;
  std::string name;

  c10::IValue call(char const* method, std::vector<std::string> const& texts) const {
    c10::List<std::string> list;
    for (std::string const& each : texts) list.push_back(each);
    try {
      return module->get_method(method)({list});
    } catch (std::exception const& error) {
      throw std::runtime_error("tstitch::TextEncoder '" + name + "': " + method + " must run, got " + reason(error));
    }
  }

  /// Texts at once: what the network keeps of each in between is large, of T5-XXL 25 MB.
  static constexpr std::size_t most_at_once = 32;

  /// @param method forward or encode_negative
  std::vector<std::pair<std::string, at::Tensor>> encode(char const* method,
                                                         std::vector<std::string> const& texts) const {
    std::vector<std::pair<std::string, std::vector<at::Tensor>>> parts;
    for (std::size_t begin = 0; begin < texts.size(); begin += most_at_once) {
      const std::size_t end = std::min(begin + most_at_once, texts.size());
      for (auto& [output, tensor] :
           encode_at_once(method, {texts.begin() + std::ptrdiff_t(begin), texts.begin() + std::ptrdiff_t(end)})) {
        const auto is_it = [wanted = output](auto const& each) { return each.first == wanted; };
        auto part = std::find_if(parts.begin(), parts.end(), is_it);
        if (part == parts.end()) part = parts.insert(parts.end(), {output, {}});
        part->second.push_back(std::move(tensor));
      }
    }
    std::vector<std::pair<std::string, at::Tensor>> all;
    for (auto const& [output, tensors] : parts) {
      all.emplace_back(output, rows_of("TextEncoder '" + name + "'", output, tensors, tensors.front().device()));
    }
    return all;
  }

  std::vector<std::pair<std::string, at::Tensor>> encode_at_once(char const* method,
                                                                 std::vector<std::string> const& texts) const {
    if (warm_up) warm_up->before({host_tensor({std::int64_t(texts.size())}, at::kFloat)}, [&] { call(method, texts); });
    std::vector<std::pair<std::string, at::Tensor>> found;
    for (auto const& each : call(method, texts).toGenericDict()) {
      found.emplace_back(each.key().toStringRef(), each.value().toTensor());
    }
    return found;
  }

  TextTokens tokenize(std::vector<std::string> const& texts) const {
    auto const tuple = call("tokenize", texts).toTuple();
    const auto tensor = [&](std::size_t k) { return tuple->elements()[k].toTensor(); };
    return {tensor(0), tensor(1), tensor(2)};
  }
};

/// @throws std::runtime_error unless it has a method of this name that takes texts and returns this type
inline void require_text_method(torch::jit::Module const& module, char const* name, std::string const& type,
                                std::string const& source) {
  std::string got = "none";
  if (const auto method = module.find_method(name)) {
    auto const& schema = method->function().getSchema();
    got = "(";
    for (std::size_t k = 1; k < schema.arguments().size(); ++k) {
      got += (k > 1 ? ", " : "") + schema.arguments()[k].type()->str();
    }
    got += ") -> " + (schema.returns().size() == 1 ? schema.returns()[0].type()->str() : "several");
  }
  if (const std::string wanted = "(str[]) -> " + type; got != wanted) {
    throw std::runtime_error("tstitch::load_text_encoder: " + source + ": " + name + " must be " + wanted + ", got " +
                             printable(got));
  }
}

/// Moves the tensors of a module; those of real numbers become float32 where that is asked for, else they stay what
/// they are: of some encoders a few weights are float32 among others of float16.
inline void move_text_encoder(StoredModule& stored, TorchScriptOptions const& options, std::string const& source) {
  torch::jit::Module const& module = stored.module();
  at::ScalarType own = at::kFloat;
  for (at::Tensor const& parameter : module.parameters()) {
    if (!parameter.is_floating_point()) continue;
    own = parameter.scalar_type();
    if (own != at::kFloat) break;
  }
  const at::ScalarType type = options.dtype.value_or(options.device.is_cpu() ? at::kFloat : own);
  if (type != at::kFloat && type != own) {
    refuse("load_text_encoder",
           source + ": dtype must be float32" + (own == at::kFloat ? "" : std::string(" or ") + at::toString(own)) +
               ", which the file has",
           at::toString(type));
  }
  move(stored, options.device, type == at::kFloat ? std::optional(type) : std::nullopt);
}

}  // namespace detail

/// Reads the description of a text encoder from its file, without the weights.
/// @throws std::runtime_error for a file that cannot be read, or whose metadata is wrong or missing
inline TextEncoderInfo read_text_encoder_info(std::string const& path) {
  constexpr detail::FileKind kind{"read_text_encoder_info", "a TorchScript file of a text encoder"};
  const std::string source = detail::quoted(path);
  const auto archive = detail::open_network(kind, source, detail::open_file(kind, path));
  return detail::reading(kind, source,
                         [&] { return detail::read_text_encoder_info(detail::MetadataReader(*archive, source)); });
}

/// Loads a text encoder with its tokenizer: texts to conditions. The tokenizer runs on the host, the network on the
/// device. Runs code of the file, so load what you trust.
///
///     const tstitch::TextEncoder encoder = tstitch::load_text_encoder("sd15_text.pt", {.device = device});
///     request.conditions = encoder.conditions({"a fox in the snow"}, "blurry");
///
/// @param options device and dtype; not stated: float32 on the CPU, the file's own type elsewhere. Others than float32
///                and the file's own are refused: some weights must stay float32. The rest is not for text encoders.
/// @throws std::runtime_error naming the file and what is wrong with it; std::invalid_argument for another dtype
inline TextEncoder load_text_encoder(std::string const& path, TorchScriptOptions const& options = {}) {
  const auto file = detail::open_file(detail::text_encoder_file, path);
  const std::string source = detail::quoted(path);
  require_device(options.device, "load_text_encoder");
  return detail::reading(detail::text_encoder_file, source, [&] {
    const auto archive = detail::open_network(detail::text_encoder_file, source, file);
    if (detail::is_package(*archive)) {
      detail::refuse_file(detail::text_encoder_file, source, "a package of torch.export");
    }
    TextEncoderInfo info = detail::read_text_encoder_info(detail::MetadataReader(*archive, source));
    detail::StoredModule stored(archive);
    const auto module = std::make_shared<torch::jit::Module>(stored.module());
    const c10::AutoGradMode no_gradients(false);
    detail::require_text_method(*module, "forward", "Dict(str, Tensor)", source);
    if (!info.instruction.empty()) {
      detail::require_text_method(*module, "encode_negative", "Dict(str, Tensor)", source);
    }
    detail::require_text_method(*module, "tokenize", "(Tensor, Tensor, Tensor)", source);
    module->eval();
    detail::move_text_encoder(stored, options, source);
    // Not frozen: the tables of the tokenizer would be copied into the code.
    const auto scripted_with_own_warm_up = [&] {  // each method is compiled by itself
      const auto warm_up = options.device.is_cpu() ? nullptr : std::make_shared<detail::WarmUp>();
      return detail::ScriptedTextEncoder{module, warm_up, info.name};
    };
    const detail::ScriptedTextEncoder scripted = scripted_with_own_warm_up(), negative = scripted_with_own_warm_up();
    return TextEncoder(
        {.encode = [scripted](auto const& texts) { return scripted.encode("forward", texts); },
         .encode_negative = [negative](auto const& texts) { return negative.encode("encode_negative", texts); },
         .tokenize = [scripted](auto const& texts) { return scripted.tokenize(texts); },
         .info = std::move(info),
         .device = options.device});
  });
}

}  // namespace tstitch
