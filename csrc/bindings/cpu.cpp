// Python bindings of the CPU kernels. An image is four arguments: pointer, shape, strides, type.
#include <pybind11/stl.h>

#include "../kernels/cpu/dispatch.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

using namespace ppcmi::bindings;

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
                       std::int64_t count, Address index, Address offsets, int bits, Address levels, int threads) {
  const ppcmi::Image source = image(codes, codes_shape, codes_strides, 0);
  const ppcmi::Image result = image(out, out_shape, out_strides, type);
  py::gil_scoped_release release;
  ppcmi::switch_dequantize(
      source, result,
      {pointer<const float>(matrices), count, pointer<const std::int64_t>(index), pointer<const float>(offsets)},
      {bits, pointer<const float>(levels)}, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of ppcmi_fast; call them through ppcmi_fast.ops";
  // Pointers only: whoever makes one keeps the tensors alive.
  py::class_<ppcmi::Material>(module, "Material", py::module_local()).def(py::init(&material));
  module.def("klt", &klt);
  module.def("klt_quantize", &klt_quantize);
  module.def("klt_dequantize", &klt_dequantize);
  module.def("switch_dequantize", &switch_dequantize);
  // How many additions, or multiply-adds, it has done; for benchmarks.
  module.def("peak", [](std::int64_t rounds, float step, bool fused) {
    py::gil_scoped_release release;
    ppcmi::kernels().peak(rounds, step, fused);
    return ppcmi::kernels().peak_operations(rounds);
  });
  module.def("isa", [] { return std::string(ppcmi::kernels().name); });
  module.def("isas", &ppcmi::isas);
  module.def("use_isa", &ppcmi::use_isa);
#ifdef _OPENMP
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
}
