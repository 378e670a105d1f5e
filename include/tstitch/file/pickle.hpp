/// @file
/// Checks the pickles in torch's files without building any objects. Torch's own reader trusts what they say.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive.hpp"
#include "pickle_stack.hpp"
#include "pickled_tensor.hpp"

namespace tstitch::detail {

/// Runs a pickle of torch.save or torch.jit.save on a stack as torch's reader would, but keeps of each value only what
/// the checks need, and calls nothing. Instructions that torch does not write are refused.
class Pickle : public PickleStack {
 public:
  /// @param folder "data" for data.pkl, whose records are data/0, data/1 ...
  /// @param classes whether objects are allowed, as in files of torch.jit.save; if not, the values of lists are kept
  /// @throws c10::Error that names the pickle and what is wrong with it
  Pickle(Archive const& archive, std::string folder, bool classes)
      : PickleStack(std::move(folder), classes),
        archive_(archive),
        bytes_(archive.text(folder_ + ".pkl")),
        most_instructions_(std::min(archive.size(), (std::size_t(1) << 21) + archive.size() / 32)),
        most_bytes_((std::uint64_t(1) << 24) + 3 * std::uint64_t(archive.size())) {
    require(byte() == 0x80 && byte() == 2, "must be of protocol 2");
    for (std::size_t count = 0; step(); ++count) require(count < most_instructions_, "is too long for its archive");
    require(position_ == bytes_.size() && stack_.size() == 1 && marks_.empty(), "must hold one value");
  }

  Pickle(Pickle const&) = delete;
  Pickle& operator=(Pickle const&) = delete;

  PickledTensor const& tensor(Value const& value) const { return tensors_[std::size_t(value.number)]; }

 private:
  unsigned char byte() {
    require(position_ < bytes_.size(), "ends early");
    return static_cast<unsigned char>(bytes_[position_++]);
  }

  std::string_view take(std::size_t count) {
    require(count <= bytes_.size() - position_, "ends early");
    position_ += count;
    return std::string_view(bytes_).substr(position_ - count, count);
  }

  /// A little-endian number of up to 8 bytes.
  std::uint64_t number(std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t k = 0; k < size; ++k) value |= std::uint64_t(byte()) << (8 * k);
    return value;
  }

  std::int64_t signed_number(std::size_t size) {
    const std::size_t missing = 64 - 8 * size;
    return size == 0 ? 0 : std::int64_t(number(size) << missing) >> missing;
  }

  /// Runs one instruction.
  /// @returns whether more follow
  bool step() {
    const int code = byte();
    if (code == '.') return false;
    require(push_value(code) || change_container(code) || name_value(code) || call_function(code),
            "has an instruction that torch does not write");
    return true;
  }

  /// @returns whether the instruction makes a value out of nothing
  bool push_value(int code) {
    switch (code) {
      case 'N': push({}); return true;
      case 0x88:
      case 0x89: push({.kind = Kind::boolean, .number = code == 0x88}); return true;
      case 'K': push({.kind = Kind::integer, .number = std::int64_t(number(1))}); return true;
      case 'M': push({.kind = Kind::integer, .number = std::int64_t(number(2))}); return true;
      case 'J': push({.kind = Kind::integer, .number = signed_number(4)}); return true;
      case 0x8a: {
        const std::size_t size = number(1);
        require(size <= 8, "has a number that is too large");
        push({.kind = Kind::integer, .number = signed_number(size)});
        return true;
      }
      case 'G': {
        std::uint64_t bits = 0;
        for (const char each : take(8)) bits = bits << 8 | static_cast<unsigned char>(each);
        push({.kind = Kind::real, .number = std::bit_cast<std::int64_t>(bits)});
        return true;
      }
      case 'X': {
        const std::size_t size = number(4);
        push({.kind = Kind::text, .text = take(size)});
        return true;
      }
      case ']': push({.kind = Kind::list}); return true;
      case '}': push({.kind = Kind::dict}); return true;
      case ')': push_tuple({}); return true;
      case 'c': push_global(); return true;
      default: return false;
    }
  }

  /// @returns whether the instruction puts values of the stack into a container
  bool change_container(int code) {
    switch (code) {
      case '(': marks_.push_back(stack_.size()); return true;
      case 0x85: push_tuple({pop()}); return true;
      case 0x86: {
        const std::uint32_t second = pop();
        push_tuple({pop(), second});
        return true;
      }
      case 0x87: {
        const std::uint32_t third = pop(), second = pop();
        push_tuple({pop(), second, third});
        return true;
      }
      case 't': push_tuple(pop_marked()); return true;
      case 'a': {
        require(!classes_, "has an instruction that torch does not write");
        const std::uint32_t value = pop();
        append({value});
        return true;
      }
      case 'e': append(pop_marked()); return true;
      case 'l': {
        const std::vector<std::uint32_t> values = pop_marked();
        push({.kind = Kind::list});
        append(values);
        return true;
      }
      case 'd': {
        const std::vector<std::uint32_t> values = pop_marked();
        push({.kind = Kind::dict});
        set_items(values);
        return true;
      }
      case 's': {
        const std::uint32_t value = pop();
        set_items({pop(), value});
        return true;
      }
      case 'u': set_items(pop_marked()); return true;
      default: return false;
    }
  }

  /// @returns whether the instruction keeps a value under a number, or takes one from there
  bool name_value(int code) {
    switch (code) {
      case 'q': memorize(number(1)); return true;
      case 'r': memorize(number(4)); return true;
      case 'h': recall(number(1)); return true;
      case 'j': recall(number(4)); return true;
      default: return false;
    }
  }

  /// @returns whether the instruction makes a storage or an object
  bool call_function(int code) {
    switch (code) {
      case 'Q': push_storage(values_[pop()]); return true;
      case 0x81: {
        const std::uint32_t arguments = pop();
        require(is(arguments, Kind::tuple) && values_[arguments].children.empty(), "makes an object from arguments");
        return true;
      }
      case 'R':
      case 'b': {
        const std::uint32_t arguments = pop(), function = pop();
        require(classes_ || !is(function, Kind::dict),
                "has a dict with attributes, such as module.state_dict(): save dict(...) of it");
        require(is(function, Kind::global), "calls what is no function");
        call(values_[function].text, arguments);
        return true;
      }
      default: return false;
    }
  }

  bool is(std::uint32_t index, Kind kind) const { return values_[index].kind == kind; }

  /// Whether this is a tuple that begins with values of these kinds.
  bool has(Value const& tuple, std::initializer_list<Kind> kinds) const {
    return tuple.kind == Kind::tuple && tuple.children.size() >= kinds.size() &&
           std::equal(kinds.begin(), kinds.end(), tuple.children.begin(),
                      [&](Kind kind, std::uint32_t index) { return is(index, kind); });
  }

  std::string_view line() {
    const std::size_t end = std::min(bytes_.find('\n', position_), bytes_.size());
    const std::string_view line = take(end - position_);
    byte();
    const auto identifies = [](char c) {
      return c == '_' || c == '.' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    };
    require(line.size() <= 4096 && std::all_of(line.begin(), line.end(), identifies), "names no function or class");
    return line;
  }

  /// What a user should save instead, for an error message.
  static char const* advice(std::string_view module, std::string_view name) {
    if (module != "torch._utils") return "";
    if (name == "_rebuild_parameter") return " of a parameter: save its .detach()";
    if (name == "_rebuild_tensor_v3") return " of a type without a storage of its own: save its .to(torch.float16)";
    return "";
  }

  void push_global() {
    const std::size_t begin = position_;
    const std::string_view module = line(), name = line();
    bool known = module == "torch.jit._pickle" || (module == "collections" && name == "OrderedDict") ||
                 (module == "torch._utils" && name == "_rebuild_tensor_v2") ||
                 (module == "torch" && storage_type(name));
    if (classes_ && !known) {
      known = (module == "torch._utils" && name == "_rebuild_qtensor") || (module == "torch" && name != "Tensor") ||
              !(module.starts_with("torch.") || module == "torch" || module == "__main__" || module == "collections");
    }
    TORCH_CHECK(known, folder_, ".pkl must hold tensors, got '", printable(module), ".", printable(name), "'",
                advice(module, name));
    push({.kind = Kind::global, .text = std::string_view(bytes_).substr(begin, position_ - begin - 1)});
  }

  void push_storage(Value const& key) {
    require(has(key, {Kind::text, Kind::global, Kind::text, Kind::text, Kind::integer}) &&
                values_[key.children[0]].text == "storage",
            "has a storage without type, name and size");
    const std::string_view type_name = values_[key.children[1]].text;
    const auto type = type_name.starts_with("torch\n") ? storage_type(type_name.substr(6)) : std::nullopt;
    require(type && (classes_ || !c10::isQIntType(*type)), "has a storage of an unknown type");
    PickledTensor storage{.record = folder_ + "/" + std::string(values_[key.children[2]].text),
                          .type = *type,
                          .elements = values_[key.children[4]].number};
    const auto found = archive_.records().find(storage.record);
    const std::uint64_t size = found == archive_.records().end() ? 0 : found->second.size;
    const std::uint64_t element = c10::elementSize(*type);
    // Torch allocates the record's size and then reads as many elements as the pickle claims.
    TORCH_CHECK(storage.elements >= 0 && std::uint64_t(storage.elements) == size / element, folder_,
                ".pkl says that entry ", detail::quoted(storage.record), " has ", storage.elements, " elements of ",
                element, " bytes, got ", size, " bytes");
    if (classes_ || storages_.emplace(storage.record, *type).second) add_bytes(storage_bytes_, size);
    push({.kind = Kind::storage, .number = std::int64_t(tensors_.size())});
    tensors_.push_back(std::move(storage));
  }

  /// Counts the memory that loading will take. In a module, torch allocates a storage each time the pickle names it,
  /// and engines copy every element of a tensor, also those that a stride of 0 repeats. In a dict of tensors each
  /// storage is allocated once, and tensors are views of it.
  void add_bytes(std::uint64_t& total, std::uint64_t bytes) const {
    require(bytes <= most_bytes_ - total, "takes more memory than a file of this size is to");
    total += bytes;
  }

  std::vector<std::int64_t> integers(Value const& tuple) const {
    std::vector<std::int64_t> found;
    for (const std::uint32_t index : tuple.children) {
      require(is(index, Kind::integer) && values_[index].number >= 0, "has a tensor of negative sizes or strides");
      found.push_back(values_[index].number);
    }
    return found;
  }

  /// Whether the tensor is a conjugated or negated view.
  bool has_metadata(Value const& arguments) const {
    return arguments.children.size() == 7 && is(arguments.children[6], Kind::dict);
  }

  void push_tensor(Value const& arguments, bool quantized) {
    require(
        has(arguments, {Kind::storage, Kind::integer, Kind::tuple, Kind::tuple}) &&
            (quantized ? arguments.children.size() == 7 : arguments.children.size() == 6 || has_metadata(arguments)),
        "has a tensor without storage, offset, sizes and strides");
    require(classes_ || arguments.children.size() == 6,
            "has a conjugated or negated view: save its .resolve_conj().resolve_neg()");
    PickledTensor tensor = tensors_[std::size_t(values_[arguments.children[0]].number)];
    tensor.offset = values_[arguments.children[1]].number;
    tensor.sizes = integers(values_[arguments.children[2]]);
    tensor.strides = integers(values_[arguments.children[3]]);
    require(tensor.sizes.size() == tensor.strides.size() && tensor.sizes.size() <= 64,
            "has a tensor with other strides than sizes");
    const bool empty = std::find(tensor.sizes.begin(), tensor.sizes.end(), 0) != tensor.sizes.end();
    const auto element = std::int64_t(c10::elementSize(tensor.type));
    std::int64_t last = tensor.offset, bytes = element, start = 0;
    bool overflows = __builtin_mul_overflow(tensor.offset, element, &start);
    for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
      std::int64_t reach = 0;
      overflows |= __builtin_mul_overflow(bytes, std::max<std::int64_t>(tensor.sizes[i], 1), &bytes);
      overflows |= __builtin_mul_overflow(std::max<std::int64_t>(tensor.sizes[i] - 1, 0), tensor.strides[i], &reach);
      overflows |= __builtin_add_overflow(last, reach, &last);
    }
    // A tensor without elements may begin anywhere: an empty slice of a slice may begin beyond its storage.
    require(!overflows && tensor.offset >= 0 && (empty || last < tensor.elements),
            "has a tensor that lies beyond its storage");
    if (classes_ && !empty) add_bytes(tensor_bytes_, std::uint64_t(bytes));
    if (quantized) require_parameters(tensor, values_[arguments.children[4]]);
    push({.kind = Kind::tensor, .number = std::int64_t(tensors_.size())});
    tensors_.push_back(std::move(tensor));
  }

  /// Checks the parameters of a quantized tensor: one scale and one zero point, or one of each for every channel.
  void require_parameters(PickledTensor const& tensor, Value const& parameters) const {
    if (has(parameters, {Kind::global, Kind::real, Kind::integer})) return;
    require(has(parameters, {Kind::global, Kind::tensor, Kind::tensor, Kind::integer}),
            "has a quantized tensor without parameters");
    const std::int64_t axis = values_[parameters.children[3]].number;
    require(axis >= 0 && axis < std::int64_t(tensor.sizes.size()), "has a quantized tensor of another axis");
    for (const std::size_t k : {1U, 2U}) {
      require(this->tensor(values_[parameters.children[k]]).sizes == std::vector{tensor.sizes[std::size_t(axis)]},
              "has a quantized tensor with parameters of another size");
    }
  }

  void call(std::string_view function, std::uint32_t index) {
    Value const& arguments = values_[index];
    const auto is_pickle_function = [&](char const* prefix) {
      return function.starts_with(std::string("torch.jit._pickle\n") + prefix);
    };
    if (function == "torch._utils\n_rebuild_tensor_v2" || function == "torch._utils\n_rebuild_qtensor") {
      push_tensor(arguments, function.ends_with("_rebuild_qtensor"));
    } else if (function == "collections\nOrderedDict") {  // a tensor's hooks, which are not read, or a dict of tensors
      push({.kind = classes_ ? Kind::none : Kind::dict});
    } else if (is_pickle_function("restore_type_tag")) {
      require((has(arguments, {Kind::list, Kind::text}) || has(arguments, {Kind::dict, Kind::text})) &&
                  values_[arguments.children[1]].text.size() <= 4096,
              "has a container without a type");
      stack_.push_back(arguments.children[0]);
    } else if (is_pickle_function("build_")) {
      require(has(arguments, {Kind::list}), "has a list without values");
      stack_.push_back(arguments.children[0]);
    } else {
      // Torch reads a type, such as torch.FloatStorage, as a number and finds functions by number: a call of a type
      // would call some function.
      require(classes_ && (!function.starts_with("torch\n") || function == "torch\ndevice"),
              "calls what is no function");
      Value object{.kind = Kind::object};
      place(object, {index}, false);
      push(std::move(object));
    }
  }

  Archive const& archive_;
  std::string bytes_;
  std::size_t most_instructions_;
  std::uint64_t most_bytes_;
  std::size_t position_ = 0;
  std::vector<PickledTensor> tensors_ = {};
  std::set<std::pair<std::string, at::ScalarType>> storages_ = {};
  std::uint64_t storage_bytes_ = 0, tensor_bytes_ = 0;
};

}  // namespace tstitch::detail
