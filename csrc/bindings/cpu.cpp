// Python bindings of the CPU kernels. Pointers come as integers, so that nothing here needs torch's headers; the
// checks are the callers' (ppcmi_fast/ops/checks.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "../kernels/cpu/dispatch.h"
#include "../kernels/ops.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Four = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using ImageTuple = std::tuple<Address, Four, Four, int>;
using MaterialTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, Address, Address, Address, Address>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

ppcmi::Image image(const ImageTuple& tuple) {
  const auto& [data, shape, strides, type] = tuple;
  const auto [n, c, h, w] = shape;
  const auto [sn, sc, sh, sw] = strides;
  return {pointer<void>(data), n, c, h, w, sn, sc, sh, sw, static_cast<ppcmi::Type>(type)};
}

ppcmi::Material material(const MaterialTuple& tuple) {
  const auto& [dim, rounds, odd, mix, factors, perm, offset] = tuple;
  return {dim,
          rounds,
          odd,
          pointer<const float>(mix),
          pointer<const float>(factors),
          pointer<const std::int64_t>(perm),
          pointer<const float>(offset)};
}

void klt(const ImageTuple& x, const ImageTuple& out, const MaterialTuple& keys, int fold, bool normalize, bool inverse,
         int threads) {
  py::gil_scoped_release release;
  ppcmi::klt(image(x), image(out), material(keys), fold, normalize, inverse, threads);
}

void klt_quantize(const ImageTuple& x, const ImageTuple& codes, const MaterialTuple& keys, int fold, bool normalize,
                  int bits, Address thresholds, int threads) {
  py::gil_scoped_release release;
  ppcmi::klt_quantize(image(x), image(codes), material(keys), fold, normalize, {bits, pointer<const float>(thresholds)},
                      threads);
}

void klt_dequantize(const ImageTuple& codes, const ImageTuple& out, const MaterialTuple& keys, int fold, int bits,
                    Address levels, int threads) {
  py::gil_scoped_release release;
  ppcmi::klt_dequantize(image(codes), image(out), material(keys), fold, {bits, pointer<const float>(levels)}, threads);
}

void switch_dequantize(const ImageTuple& codes, const ImageTuple& out, Address matrices, Address index, Address offsets,
                       int bits, Address levels, int threads) {
  py::gil_scoped_release release;
  ppcmi::switch_dequantize(image(codes), image(out), pointer<const float>(matrices), pointer<const std::int64_t>(index),
                           pointer<const float>(offsets), {bits, pointer<const float>(levels)}, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of ppcmi_fast; call them through ppcmi_fast.ops";
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
