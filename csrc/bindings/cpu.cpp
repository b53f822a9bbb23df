// Python bindings of the CPU kernels.
#include <pybind11/stl.h>

#include <optional>

#include "../kernels/cpu/dispatch.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

using namespace ppcmi::bindings;

// Lets other threads of Python run meanwhile, where the work takes longer than the handing over.
class Release {
 public:
  explicit Release(const ppcmi::Image& x) {
    if (x.n * x.c * x.h * x.w > kSmall) release_.emplace();
  }

 private:
  static constexpr std::int64_t kSmall = 1 << 14;
  std::optional<py::gil_scoped_release> release_;
};

void klt(Address x, const py::object& shape, const py::object& strides, Address out, const py::object& out_strides,
         int type, const ppcmi::Material& keys, int fold, bool normalize, bool inverse, int threads) {
  const Pair images = klt_pair(x, shape, strides, out, out_strides, type, keys, fold, inverse);
  const Release release(images.source);
  ppcmi::klt(images.source, images.result, keys, fold, normalize, inverse, threads);
}

void klt_quantize(Address x, const py::object& shape, const py::object& strides, int type, Address out,
                  const py::object& out_strides, const ppcmi::Material& keys, int fold, bool normalize, int bits,
                  Address thresholds, int threads) {
  const Pair images = quantize_pair(x, shape, strides, type, out, out_strides, keys, fold, bits);
  const Release release(images.source);
  ppcmi::klt_quantize(images.source, images.result, keys, fold, normalize, {bits, pointer<const float>(thresholds)},
                      threads);
}

void klt_dequantize(Address codes, const py::object& shape, const py::object& strides, Address out,
                    const py::object& out_strides, int type, const ppcmi::Material& keys, int fold, int bits,
                    Address levels, int threads) {
  const Pair images = dequantize_pair(codes, shape, strides, out, out_strides, type, keys, fold);
  const Release release(images.source);
  ppcmi::klt_dequantize(images.source, images.result, keys, fold, {bits, pointer<const float>(levels)}, threads);
}

void switch_dequantize(Address codes, const py::object& shape, const py::object& strides, Address out,
                       const py::object& out_strides, int type, Address matrices, std::int64_t channels,
                       std::int64_t count, Address index, Address offsets, int bits, Address levels, int threads) {
  const Pair images = switch_pair(codes, shape, strides, out, out_strides, type, channels);
  const Release release(images.source);
  ppcmi::switch_dequantize(
      images.source, images.result,
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
