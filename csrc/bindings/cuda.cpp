// Python bindings of the CUDA kernels, as those of the CPU, with a device and a stream for the number of threads. With
// the host shim in the place of CUDA's compiler the same module, `_cuda_on_host`, runs them on the CPU for tests.
#include "../kernels/cuda/ops.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

using namespace ppcmi::bindings;

#ifdef PPCMI_HOST_SHIM

struct OnDevice {
  explicit OnDevice(int) {}
};

void set_order(const std::string& order, std::uint64_t seed) {
  using ppcmi::shim::Order;
  if (order == "forward") return ppcmi::shim::set_order(Order::forward);
  if (order == "reverse") return ppcmi::shim::set_order(Order::reverse);
  if (order == "shuffled") return ppcmi::shim::set_order(Order::shuffled, seed);
  throw py::value_error("order: expected forward, reverse or shuffled, got " + order);
}

#else

// Makes a device the calling thread's for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    ppcmi::cuda::check_launch(cudaGetDevice(&before_), __FILE__, __LINE__);
    changed_ = before_ != device;
    if (changed_) ppcmi::cuda::check_launch(cudaSetDevice(device), __FILE__, __LINE__);
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

#endif

cudaStream_t stream_of(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

void klt(Address x, const py::object& shape, const py::object& strides, Address out, const py::object& out_strides,
         int type, const ppcmi::Material& keys, int fold, bool normalize, bool inverse, int device, Address stream) {
  const Pair images = klt_pair(x, shape, strides, out, out_strides, type, keys, fold, inverse);
  py::gil_scoped_release release;
  const OnDevice guard(device);
  ppcmi::cuda::klt(images.source, images.result, keys, fold, normalize, inverse, stream_of(stream));
}

void klt_quantize(Address x, const py::object& shape, const py::object& strides, int type, Address out,
                  const py::object& out_strides, const ppcmi::Material& keys, int fold, bool normalize, int bits,
                  Address thresholds, int device, Address stream) {
  const Pair images = quantize_pair(x, shape, strides, type, out, out_strides, keys, fold, bits);
  py::gil_scoped_release release;
  const OnDevice guard(device);
  ppcmi::cuda::klt_quantize(images.source, images.result, keys, fold, normalize,
                            {bits, pointer<const float>(thresholds)}, stream_of(stream));
}

void klt_dequantize(Address codes, const py::object& shape, const py::object& strides, Address out,
                    const py::object& out_strides, int type, const ppcmi::Material& keys, int fold, int bits,
                    Address levels, int device, Address stream) {
  const Pair images = dequantize_pair(codes, shape, strides, out, out_strides, type, keys, fold);
  py::gil_scoped_release release;
  const OnDevice guard(device);
  ppcmi::cuda::klt_dequantize(images.source, images.result, keys, fold, {bits, pointer<const float>(levels)},
                              stream_of(stream));
}

void switch_dequantize(Address codes, const py::object& shape, const py::object& strides, Address out,
                       const py::object& out_strides, int type, Address matrices, std::int64_t channels,
                       std::int64_t count, Address index, Address offsets, int bits, Address levels, int device,
                       Address stream) {
  const Pair images = switch_pair(codes, shape, strides, out, out_strides, type, channels);
  py::gil_scoped_release release;
  const OnDevice guard(device);
  ppcmi::cuda::switch_dequantize(
      images.source, images.result,
      {pointer<const float>(matrices), count, pointer<const std::int64_t>(index), pointer<const float>(offsets)},
      {bits, pointer<const float>(levels)}, stream_of(stream));
}

}  // namespace

#ifdef PPCMI_HOST_SHIM
PYBIND11_MODULE(_cuda_on_host, module) {
  module.def("set_order", &set_order);
#else
PYBIND11_MODULE(_cuda, module) {
#endif
  module.doc() = "CUDA kernels of ppcmi_fast; call them through ppcmi_fast.ops";
  // Pointers only: whoever makes one keeps the tensors alive.
  py::class_<ppcmi::Material>(module, "Material", py::module_local()).def(py::init(&material));
  module.def("klt", &klt);
  module.def("klt_quantize", &klt_quantize);
  module.def("klt_dequantize", &klt_dequantize);
  module.def("switch_dequantize", &switch_dequantize);
}
