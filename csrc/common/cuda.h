// What every CUDA entry point needs: torch's current stream and worded errors.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>

#include "common/tensor.h"

// A shim of torch's CUDA half, weak so that the library also loads where torch has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace d2proj {

inline void check_cuda(const char* op, cudaError_t error) {
  check(error == cudaSuccess, op, "CUDA error: ", cudaGetErrorString(error));
}

// The stream that torch is using on the tensor's device.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream != nullptr, "d2proj", "this torch has no CUDA");
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes the tensor's device the current one for torch's runtime, which allocates, and for ours, which launches: the
// CUDA runtime linked into this library keeps a current device of its own.
class CudaDevice {
 public:
  explicit CudaDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    check_cuda("d2proj", cudaSetDevice(tensor.get_device_index()));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace d2proj
