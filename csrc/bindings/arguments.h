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

using Sizes = std::array<std::int64_t, 4>;

// Four sizes out of a torch.Size or a tuple; pybind11's own conversion of sequences takes several times as long.
inline Sizes four(pybind11::handle sizes) {
  if (!PyTuple_Check(sizes.ptr()) || PyTuple_GET_SIZE(sizes.ptr()) != 4) throw pybind11::type_error("expected 4 sizes");
  Sizes out{};
  for (std::size_t i = 0; i < 4; ++i) {
    out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), static_cast<Py_ssize_t>(i)));
    if (out[i] == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  }
  return out;
}

// `strides` is None for what lies densely, channels first: making and reading a tuple takes longer.
inline Image image(Address data, const Sizes& shape, pybind11::handle strides, int type) {
  const auto [n, c, h, w] = shape;
  const Sizes step = strides.is_none() ? Sizes{c * h * w, h * w, w, 1} : four(strides);
  return {pointer<void>(data), n, c, h, w, step[0], step[1], step[2], step[3], static_cast<Type>(type)};
}

// Sizes of a result of `channels`, whose positions are those of x in blocks of `fold`, or the way back.
inline Sizes folded(const Sizes& x, std::int64_t channels, int fold) {
  return {x[0], channels, x[2] / fold, x[3] / fold};
}
inline Sizes unfolded(const Sizes& x, std::int64_t channels, int fold) {
  return {x[0], channels, x[2] * fold, x[3] * fold};
}

// Source and result of an operator.
struct Pair {
  Image source, result;
};

inline Pair klt_pair(Address x, pybind11::handle shape, pybind11::handle strides, Address out,
                     pybind11::handle out_strides, int type, const Material& keys, int fold, bool inverse) {
  const Sizes from = four(shape);
  const Sizes to = inverse ? unfolded(from, keys.dim / (fold * fold), fold) : folded(from, keys.dim, fold);
  return {image(x, from, strides, type), image(out, to, out_strides, type)};
}

inline Pair quantize_pair(Address x, pybind11::handle shape, pybind11::handle strides, int type, Address out,
                          pybind11::handle out_strides, const Material& keys, int fold, int bits) {
  const Sizes from = four(shape);
  return {image(x, from, strides, type), image(out, folded(from, keys.dim * bits / 8, fold), out_strides, 0)};
}

inline Pair dequantize_pair(Address codes, pybind11::handle shape, pybind11::handle strides, Address out,
                            pybind11::handle out_strides, int type, const Material& keys, int fold) {
  const Sizes from = four(shape);
  return {image(codes, from, strides, 0),
          image(out, unfolded(from, keys.dim / (fold * fold), fold), out_strides, type)};
}

inline Pair switch_pair(Address codes, pybind11::handle shape, pybind11::handle strides, Address out,
                        pybind11::handle out_strides, int type, std::int64_t channels) {
  const Sizes from = four(shape);
  return {image(codes, from, strides, 0), image(out, folded(from, channels, 1), out_strides, type)};
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
