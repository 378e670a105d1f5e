/// @file
/// Whether a class has a member of a name, in whatever form, so that an optional member in the wrong form is an error
/// and not silently none.
#pragma once

#include <concepts>
#include <type_traits>

/// Defines the concept HasNamed_<name>, where `name` is a member's: of a class or of what it is derived from, as a
/// function, overloaded or a template, a number or a type. Classes that are final are taken to have none.
///
/// A class that is derived from T and from one with a member of that name has two of the name, and which is meant
/// cannot be said, if T has one.
#define TSTITCH_HAS_NAMED(name)                                                      \
  namespace tstitch::detail {                                                        \
  struct Named_##name {                                                              \
    int name;                                                                        \
  };                                                                                 \
  template <class T>                                                                 \
  struct WithNamed_##name : T, Named_##name {};                                      \
  template <class T>                                                                 \
  concept HasNamed_##name = std::is_class_v<T> && !std::is_final_v<T> && !requires { \
    &WithNamed_##name<T>::name;                                                      \
  };                                                                                 \
  }
