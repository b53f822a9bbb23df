// What the bindings of every device make of their Python arguments. Pointers come as integers, so that nothing here
// needs torch's headers; the checks are the callers' (ppcmi_fast/ops/checks.py).
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "../kernels/ops.h"

namespace ppcmi::bindings {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Four sizes out of a torch.Size or a tuple; pybind11's own conversion of sequences takes several times as long.
inline std::array<std::int64_t, 4> four(const pybind11::tuple& sizes) {
  std::array<std::int64_t, 4> out{};
  for (std::size_t i = 0; i < 4; ++i) {
    out[i] = PyLong_AsLongLong(PyTuple_GetItem(sizes.ptr(), static_cast<Py_ssize_t>(i)));
    if (out[i] == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  }
  return out;
}

inline Image image(Address data, const pybind11::tuple& shape, const pybind11::tuple& strides, int type) {
  const auto [n, c, h, w] = four(shape);
  const auto [sn, sc, sh, sw] = four(strides);
  return {pointer<void>(data), n, c, h, w, sn, sc, sh, sw, static_cast<Type>(type)};
}

inline Material material(std::int64_t dim, std::int64_t rounds, std::int64_t odd, Address mix, Address factors,
                         Address perm, Address offset) {
  return {dim,
          rounds,
          odd,
          pointer<const float>(mix),
          pointer<const float>(factors),
          pointer<const std::int64_t>(perm),
          pointer<const float>(offset)};
}

}  // namespace ppcmi::bindings
