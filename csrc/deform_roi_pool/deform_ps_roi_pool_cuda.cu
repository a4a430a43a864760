// deform_ps_roi_pool on CUDA; deform_roi_pool.cuh has the kernels.
#include "deform_roi_pool/deform_roi_pool.cuh"

namespace d2proj {
namespace deform_roi_pool {
namespace {

Tensor forward_cuda(const Tensor& input, const Tensor& boxes, const Tensor& offset, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width, int64_t group_height, int64_t group_width,
                    int64_t part_height, int64_t part_width, int64_t sample_per_part, double gamma) {
  return pool<true>("deform_ps_roi_pool", input, boxes, offset,
                    {pooled_height, pooled_width, group_height, group_width, part_height, part_width, sample_per_part,
                     spatial_scale, gamma});
}

std::tuple<Tensor, Tensor> backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& boxes,
                                         const Tensor& offset, double spatial_scale, int64_t pooled_height,
                                         int64_t pooled_width, int64_t group_height, int64_t group_width,
                                         int64_t part_height, int64_t part_width, int64_t sample_per_part, double gamma,
                                         bool channels_last, bool deterministic) {
  return backward<true>("_deform_ps_roi_pool_backward", grad, input, boxes, offset,
                        {pooled_height, pooled_width, group_height, group_width, part_height, part_width,
                         sample_per_part, spatial_scale, gamma},
                        channels_last, deterministic);
}

}  // namespace
}  // namespace deform_roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("deform_ps_roi_pool", TORCH_BOX(&d2proj::deform_roi_pool::forward_cuda));
  m.impl("_deform_ps_roi_pool_backward", TORCH_BOX(&d2proj::deform_roi_pool::backward_cuda));
}
