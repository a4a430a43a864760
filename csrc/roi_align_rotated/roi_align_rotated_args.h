// What the entry points of both devices check first.
#pragma once

#include "common/tensor.h"

namespace d2proj {
namespace roi_align_rotated {

inline void check_arguments(const char* op, const Tensor& rois, int64_t pooled_h, int64_t pooled_w) {
  check_dim(op, "rois", rois, 2, "(K, 6)");
  check(rois.size(1) == 6, op, "rois must have shape (K, 6), got ", shape_of(rois));
  check_box_dtype(op, "rois", rois);
  check(pooled_h > 0 && pooled_w > 0, op, "output_size must be positive, got (", pooled_h, ", ", pooled_w, ")");
}

inline void check_forward(const char* op, const Tensor& input, const Tensor& rois, int64_t pooled_h, int64_t pooled_w) {
  check_dim(op, "input", input, 4, "(N, C, H, W)");
  check_floating(op, "input", input);
  check_same_device(op, "input", input, "rois", rois);
  check_arguments(op, rois, pooled_h, pooled_w);
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& rois, int64_t channels, int64_t pooled_h,
                           int64_t pooled_w) {
  check_dim(op, "grad", grad, 4, "(K, C, height, width)");
  check_floating(op, "grad", grad);
  check_same_device(op, "grad", grad, "rois", rois);
  check_arguments(op, rois, pooled_h, pooled_w);
  check(
      grad.size(0) == rois.size(0) && grad.size(1) == channels && grad.size(2) == pooled_h && grad.size(3) == pooled_w,
      op, "grad must have shape (", rois.size(0), ", ", channels, ", ", pooled_h, ", ", pooled_w, "), got ",
      shape_of(grad));
}

}  // namespace roi_align_rotated
}  // namespace d2proj
