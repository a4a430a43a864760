// What both kernels' entry points check first.
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

}  // namespace roi_align
}  // namespace d2proj
