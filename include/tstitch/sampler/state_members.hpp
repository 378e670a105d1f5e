/// @file
/// The members of what an update rule keeps, so that runs can be kept in files.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../base/member_name.hpp"

TSTITCH_HAS_NAMED(members)

namespace tstitch::detail {

/// Sees the members of a State by name, to write them or to fill them in.
class StateMembers {
 public:
  StateMembers() = default;
  StateMembers(StateMembers const&) = delete;
  StateMembers& operator=(StateMembers const&) = delete;
  virtual ~StateMembers() = default;

  virtual void see(char const* name, std::vector<double>& values) = 0;
  virtual void see(char const* name, std::vector<std::int64_t>& values) = 0;
  virtual void see(char const* name, std::vector<at::Tensor>& values) = 0;  ///< some may be undefined
};

/// Sees members of all types that a State may have: numbers, bools, tensors, and vectors and arrays of numbers or
/// tensors.
class SeesMembers {
 public:
  explicit SeesMembers(StateMembers& members) : members_(members) {}

  template <class Member>
  void operator()(char const* name, Member& member) const {
    if constexpr (requires { typename Member::value_type; } && !std::same_as<Member, at::Tensor>) {
      see_all(name, member);
    } else {
      std::array<Member, 1> one{member};
      see_all(name, one);
      member = one[0];
    }
  }

 private:
  template <class Number>
  using Wide = std::conditional_t<std::is_floating_point_v<Number>, double, std::int64_t>;

  template <class Many>
  void see_all(char const* name, Many& many) const {
    using Value = typename Many::value_type;
    if constexpr (requires { typename Value::value_type; } && !std::same_as<Value, at::Tensor>) {
      see_arrays(name, many);
    } else {
      constexpr bool tensors = std::same_as<Value, at::Tensor>;
      static_assert(tensors || std::is_arithmetic_v<Value>,
                    "tstitch::UpdateRule: a State's members must be numbers, tensors, or vectors and arrays of them");
      std::vector<std::conditional_t<tensors, Value, Wide<Value>>> values;
      for (auto const& each : many) values.push_back(static_cast<typename decltype(values)::value_type>(each));
      members_.see(name, values);
      resize(name, many, values.size());
      for (std::size_t k = 0; k < values.size(); ++k) many[k] = static_cast<Value>(values[k]);
    }
  }

  /// Arrays of numbers, one behind another.
  template <class Many>
  void see_arrays(char const* name, Many& many) const {
    using Inner = typename Many::value_type;
    using Value = typename Inner::value_type;
    static_assert(
        std::is_arithmetic_v<Value> && requires { std::tuple_size<Inner>::value; },
        "tstitch::UpdateRule: a State's members must be numbers, tensors, or vectors and arrays of them");
    constexpr std::size_t each_has = std::tuple_size_v<Inner>;
    std::vector<Wide<Value>> values;
    for (Inner const& inner : many) {
      for (const Value each : inner) values.push_back(static_cast<Wide<Value>>(each));
    }
    members_.see(name, values);
    if (values.size() % each_has != 0) refuse_size(name);
    resize(name, many, values.size() / each_has);
    for (std::size_t k = 0; k < values.size(); ++k) many[k / each_has][k % each_has] = static_cast<Value>(values[k]);
  }

  template <class Many>
  static void resize(char const* name, Many& many, std::size_t size) {
    if constexpr (requires { many.resize(size); }) {
      many.resize(size);
    } else if (many.size() != size) {
      refuse_size(name);
    }
  }

  [[noreturn]] static void refuse_size(char const* name) {
    throw std::runtime_error("the State of an update rule with another number of '" + std::string(name) + "'");
  }

  StateMembers& members_;
};

}  // namespace tstitch::detail
