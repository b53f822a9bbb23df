// What the kernels need beyond CUDA's language, for both compilers: nvcc, and a host compiler with the shim that runs
// kernels on the CPU (-DPPCMI_HOST_SHIM). Every .cu and .cuh includes this first.
#pragma once

#ifdef PPCMI_HOST_SHIM

#include "../host_shim/shim.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

// One name and type for all kernels: two `extern __shared__` of one name and different types do not compile.
#define PPCMI_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char ppcmi_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(ppcmi_shared_bytes)

namespace ppcmi::cuda {

inline void check_launch(cudaError_t error, const char* where, int line) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(where) + ":" + std::to_string(line) + ": " + cudaGetErrorString(error));
}

// Of the calling thread's device.
inline int multiprocessors() {
  int device = 0, count = 0;
  check_launch(cudaGetDevice(&device), __FILE__, __LINE__);
  check_launch(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), __FILE__, __LINE__);
  return count;
}

// The most that a block of the calling thread's device can ask for.
inline std::size_t most_shared_bytes() {
  int device = 0, bytes = 0;
  check_launch(cudaGetDevice(&device), __FILE__, __LINE__);
  check_launch(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), __FILE__, __LINE__);
  return static_cast<std::size_t>(bytes);
}

#ifdef __CUDACC__

// `where` and `line` name the launch in the std::runtime_error that a refused one throws.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            const char* where, int line, Args&&... args) {
  constexpr std::size_t kWithoutAsking = 48 << 10;  // beyond, a kernel has to be allowed its shared memory
  if (shared_bytes > kWithoutAsking) {
    check_launch(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                 where, line);
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Args>(args)...);
  // clang-format on
  check_launch(cudaGetLastError(), where, line);
}

#endif

}  // namespace ppcmi::cuda

#endif

// A kernel with more than one template argument goes into parentheses: PPCMI_LAUNCH((kernel<64, 2>), ...).
#define PPCMI_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                               \
  ::ppcmi::cuda::launch(kernel, grid, block, shared_bytes, stream, "launch of " #kernel " at " __FILE__, __LINE__, \
                        __VA_ARGS__)
