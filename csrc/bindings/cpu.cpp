// Python bindings of the CPU kernels. Pointers come as integers, so that nothing here needs torch's headers; the
// checks are the callers' (ppcmi_fast/ops/checks.py). An image is four arguments: pointer, shape, strides, type.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../kernels/cpu/dispatch.h"
#include "../kernels/ops.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Four sizes out of a torch.Size or a tuple; pybind11's own conversion of sequences takes several times as long.
std::array<std::int64_t, 4> four(const py::tuple& sizes) {
  std::array<std::int64_t, 4> out{};
  for (std::size_t i = 0; i < 4; ++i) {
    out[i] = PyLong_AsLongLong(PyTuple_GetItem(sizes.ptr(), static_cast<Py_ssize_t>(i)));
    if (out[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
  }
  return out;
}

ppcmi::Image image(Address data, const py::tuple& shape, const py::tuple& strides, int type) {
  const auto [n, c, h, w] = four(shape);
  const auto [sn, sc, sh, sw] = four(strides);
  return {pointer<void>(data), n, c, h, w, sn, sc, sh, sw, static_cast<ppcmi::Type>(type)};
}

ppcmi::Material material(std::int64_t dim, std::int64_t rounds, std::int64_t odd, Address mix, Address factors,
                         Address perm, Address offset) {
  return {dim,
          rounds,
          odd,
          pointer<const float>(mix),
          pointer<const float>(factors),
          pointer<const std::int64_t>(perm),
          pointer<const float>(offset)};
}

void klt(Address x, const py::tuple& x_shape, const py::tuple& x_strides, Address out, const py::tuple& out_shape,
         const py::tuple& out_strides, int type, const ppcmi::Material& keys, int fold, bool normalize, bool inverse,
         int threads) {
  const ppcmi::Image source = image(x, x_shape, x_strides, type), result = image(out, out_shape, out_strides, type);
  py::gil_scoped_release release;
  ppcmi::klt(source, result, keys, fold, normalize, inverse, threads);
}

void klt_quantize(Address x, const py::tuple& x_shape, const py::tuple& x_strides, int type, Address out,
                  const py::tuple& out_shape, const py::tuple& out_strides, const ppcmi::Material& keys, int fold,
                  bool normalize, int bits, Address thresholds, int threads) {
  const ppcmi::Image source = image(x, x_shape, x_strides, type), codes = image(out, out_shape, out_strides, 0);
  py::gil_scoped_release release;
  ppcmi::klt_quantize(source, codes, keys, fold, normalize, {bits, pointer<const float>(thresholds)}, threads);
}

void klt_dequantize(Address codes, const py::tuple& codes_shape, const py::tuple& codes_strides, Address out,
                    const py::tuple& out_shape, const py::tuple& out_strides, int type, const ppcmi::Material& keys,
                    int fold, int bits, Address levels, int threads) {
  const ppcmi::Image source = image(codes, codes_shape, codes_strides, 0);
  const ppcmi::Image result = image(out, out_shape, out_strides, type);
  py::gil_scoped_release release;
  ppcmi::klt_dequantize(source, result, keys, fold, {bits, pointer<const float>(levels)}, threads);
}

void switch_dequantize(Address codes, const py::tuple& codes_shape, const py::tuple& codes_strides, Address out,
                       const py::tuple& out_shape, const py::tuple& out_strides, int type, Address matrices,
                       Address index, Address offsets, int bits, Address levels, int threads) {
  const ppcmi::Image source = image(codes, codes_shape, codes_strides, 0);
  const ppcmi::Image result = image(out, out_shape, out_strides, type);
  py::gil_scoped_release release;
  ppcmi::switch_dequantize(source, result, pointer<const float>(matrices), pointer<const std::int64_t>(index),
                           pointer<const float>(offsets), {bits, pointer<const float>(levels)}, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of ppcmi_fast; call them through ppcmi_fast.ops";
  // Pointers only: whoever makes one keeps the tensors alive.
  py::class_<ppcmi::Material>(module, "Material").def(py::init(&material));
  module.def("klt", &klt);
  module.def("klt_quantize", &klt_quantize);
  module.def("klt_dequantize", &klt_dequantize);
  module.def("switch_dequantize", &switch_dequantize);
  module.def("isa", [] { return std::string(ppcmi::kernels().name); });
  module.def("isas", &ppcmi::isas);
  module.def("use_isa", &ppcmi::use_isa);
#ifdef _OPENMP
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
}
