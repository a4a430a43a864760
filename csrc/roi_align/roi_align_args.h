// What the entry points of both devices check first.
#pragma once

#include "common/tensor.h"

namespace d2proj {
namespace roi_align {

inline void check_arguments(const char* op, const Tensor& boxes, int64_t pooled_h, int64_t pooled_w) {
  check_dim(op, "boxes", boxes, 2, "(K, 5)");
  check(boxes.size(1) == 5, op, "boxes must have shape (K, 5), got ", shape_of(boxes));
  check_box_dtype(op, "boxes", boxes);
  check(pooled_h > 0 && pooled_w > 0, op, "output_size must be positive, got (", pooled_h, ", ", pooled_w, ")");
}

inline void check_forward(const char* op, const Tensor& input, const Tensor& boxes, int64_t pooled_h,
                          int64_t pooled_w) {
  check_dim(op, "input", input, 4, "(N, C, H, W)");
  check_floating(op, "input", input);
  check_same_device(op, "input", input, "boxes", boxes);
  check_arguments(op, boxes, pooled_h, pooled_w);
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& boxes, int64_t channels, int64_t pooled_h,
                           int64_t pooled_w) {
  check_dim(op, "grad", grad, 4, "(K, C, height, width)");
  check_floating(op, "grad", grad);
  check_same_device(op, "grad", grad, "boxes", boxes);
  check_arguments(op, boxes, pooled_h, pooled_w);
  check(
      grad.size(0) == boxes.size(0) && grad.size(1) == channels && grad.size(2) == pooled_h && grad.size(3) == pooled_w,
      op, "grad must have shape (", boxes.size(0), ", ", channels, ", ", pooled_h, ", ", pooled_w, "), got ",
      shape_of(grad));
}

}  // namespace roi_align
}  // namespace d2proj
