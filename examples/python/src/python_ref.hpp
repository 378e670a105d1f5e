/// @file
/// Objects of Python in values of C++. Includes no torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace tstitch::python {

namespace py = pybind11;

/// A Python object that may be copied and let go without the GIL, as the library does with callables.
class Ref {
 public:
  Ref() = default;

  /// Needs the GIL, as `get` does.
  explicit Ref(py::object object) {
    if (!object) return;
    object_ = std::shared_ptr<PyObject>(object.release().ptr(), [](PyObject* owned) {
      if (!Py_IsInitialized()) return;  // the process ends, and the object with it
      const py::gil_scoped_acquire gil;
      Py_DECREF(owned);
    });
  }

  explicit operator bool() const { return bool(object_); }
  PyObject* ptr() const { return object_.get(); }
  py::object get() const { return py::reinterpret_borrow<py::object>(object_.get()); }

 private:
  std::shared_ptr<PyObject> object_;
};

/// One of several values by name.
/// @throws std::invalid_argument that names the argument
template <class Value>
Value choose(std::string const& argument, std::string const& name,
             std::vector<std::pair<char const*, Value>> const& values) {
  std::string all;
  for (auto const& [each, value] : values) {
    if (name == each) return value;
    all += (all.empty() ? "'" : ", '") + std::string(each) + "'";
  }
  throw std::invalid_argument(argument + ": must be one of " + all + ", got '" + name + "'");
}

/// The index of a network, or of something else, that a callable of Python returned.
/// @throws TypeError for what is no whole number
inline std::size_t index_of(char const* who, py::object const& returned) {
  PyObject* const number = PyNumber_Index(returned.ptr());
  if (!number || PyBool_Check(returned.ptr())) {
    PyErr_Clear();
    Py_XDECREF(number);
    throw py::type_error(std::string(who) + ": must return an int, got " + py::repr(returned).cast<std::string>());
  }
  const py::int_ whole = py::reinterpret_steal<py::int_>(number);
  const long long value = PyLong_AsLongLong(whole.ptr());
  if (value == -1 && PyErr_Occurred()) PyErr_Clear();  // too large: refused as no index, like -1
  return std::size_t(value);
}

}  // namespace tstitch::python
