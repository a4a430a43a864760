// What the entry points of both ops and devices check first, and the numbers that they work with.
#pragma once

#include <limits>

#include "common/tensor.h"
#include "deform_roi_pool/deform_roi_pool.h"

namespace d2proj {
namespace deform_roi_pool {

// The sizes as Python gives them; deform_roi_pool has one cell and one class.
struct Sizes {
  int64_t pooled_h, pooled_w, group_h, group_w, part_h, part_w, sampling;
  double spatial_scale, gamma;
};

inline Problem check_arguments(const char* op, const Tensor& input, const Tensor& boxes, const Tensor& offset,
                               const Sizes& s, bool position_sensitive) {
  check_dim(op, "input", input, 4, "(N, C, H, W)");
  check_floating(op, "input", input);
  check_same_device(op, "input", input, "rois", boxes);
  check_same_device(op, "input", input, "offset", offset);
  check_dim(op, "rois", boxes, 2, "(K, 5)");
  check(boxes.size(1) == 5, op, "rois must have shape (K, 5), got ", shape_of(boxes));
  check_box_dtype(op, "rois", boxes);
  check_floating(op, "offset", offset);
  check(s.pooled_h > 0 && s.pooled_w > 0, op, "output_size must be positive, got (", s.pooled_h, ", ", s.pooled_w, ")");
  check(s.group_h > 0 && s.group_w > 0, op, "group_size must be positive, got (", s.group_h, ", ", s.group_w, ")");
  check(s.part_h > 0 && s.part_w > 0, op, "part_size must be positive, got (", s.part_h, ", ", s.part_w, ")");
  // So that no product of sizes overflows.
  constexpr int64_t kMost = std::numeric_limits<int16_t>::max();
  check(s.pooled_h <= kMost && s.pooled_w <= kMost && s.group_h <= kMost && s.group_w <= kMost && s.part_h <= kMost &&
            s.part_w <= kMost,
        op, "output_size, group_size and part_size must be at most ", kMost);
  if (position_sensitive) {
    check(s.sampling > 0 && s.sampling <= kMost, op, "sample_per_part must be from 1 to ", kMost, ", got ", s.sampling);
  }
  constexpr int64_t kMostPixels = std::numeric_limits<int32_t>::max();
  check(input.size(2) <= kMostPixels && input.size(3) <= kMostPixels, op, "input's height and width must be at most ",
        kMostPixels, ", got ", shape_of(input));
  const int64_t cells = s.group_h * s.group_w;
  check(input.size(1) % cells == 0, op, "input must have a multiple of ", s.group_h, " * ", s.group_w,
        " channels, got ", input.size(1));
  const int64_t channels = input.size(1) / cells;
  check(offset.dim() == 4 && offset.size(0) == boxes.size(0) && offset.size(1) > 0 && offset.size(1) % 2 == 0 &&
            (position_sensitive || offset.size(1) == 2) && offset.size(2) == s.part_h && offset.size(3) == s.part_w,
        op, "offset must have shape (", boxes.size(0), position_sensitive ? ", 2 * classes, " : ", 2, ", s.part_h, ", ",
        s.part_w, "), got ", shape_of(offset));
  const int64_t classes = offset.size(1) / 2;
  check(channels % classes == 0, op, "offset has ", classes, " classes, which do not divide the result's ", channels,
        " channels");
  return {input.size(0), channels, input.size(2), input.size(3), boxes.size(0),   s.pooled_h, s.pooled_w, s.group_h,
          s.group_w,     classes,  s.part_h,      s.part_w,      s.spatial_scale, s.gamma,    s.sampling};
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& input, const Problem& p) {
  check_same_device(op, "input", input, "grad", grad);
  check(grad.scalar_type() == input.scalar_type(), op, "grad must have the dtype of input");
  check(grad.dim() == 4 && grad.size(0) == p.boxes && grad.size(1) == p.channels && grad.size(2) == p.pooled_h &&
            grad.size(3) == p.pooled_w,
        op, "grad must have shape (", p.boxes, ", ", p.channels, ", ", p.pooled_h, ", ", p.pooled_w, "), got ",
        shape_of(grad));
}

// Contiguous and in the type that sums are taken in.
template <typename A>
Tensor contiguous_as(const Tensor& tensor) {
  const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

}  // namespace deform_roi_pool
}  // namespace d2proj
