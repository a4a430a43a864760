// deform_roi_pool on CUDA; deform_roi_pool.cuh has the kernels.
#include "deform_roi_pool/deform_roi_pool.cuh"

namespace d2proj {
namespace deform_roi_pool {
namespace {

Tensor forward_cuda(const Tensor& input, const Tensor& boxes, const Tensor& offset, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, double gamma) {
  return pool<false>(
      "deform_roi_pool", input, boxes, offset,
      {pooled_height, pooled_width, 1, 1, pooled_height, pooled_width, sampling_ratio, spatial_scale, gamma});
}

std::tuple<Tensor, Tensor> backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& boxes,
                                         const Tensor& offset, double spatial_scale, int64_t pooled_height,
                                         int64_t pooled_width, int64_t sampling_ratio, double gamma, bool channels_last,
                                         bool deterministic) {
  return backward<false>(
      "_deform_roi_pool_backward", grad, input, boxes, offset,
      {pooled_height, pooled_width, 1, 1, pooled_height, pooled_width, sampling_ratio, spatial_scale, gamma},
      channels_last, deterministic);
}

}  // namespace
}  // namespace deform_roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&d2proj::deform_roi_pool::forward_cuda));
  m.impl("_deform_roi_pool_backward", TORCH_BOX(&d2proj::deform_roi_pool::backward_cuda));
}
