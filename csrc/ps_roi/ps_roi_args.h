// What the entry points of both devices check first.
#pragma once

#include "ps_roi/ps_roi.h"
#include "roi_pool/roi_pool_args.h"

namespace d2proj {
namespace ps_roi {

// What sets the two ops apart: ps_roi_pool has no sampling ratio.
struct Options {
  int64_t pooled_h, pooled_w;
  int64_t height, width;  // of the map
  double spatial_scale;
  int64_t sampling_ratio;
};

inline void check_channels(const char* op, int64_t channels, int64_t pooled_h, int64_t pooled_w) {
  roi_pool::check_output_size(op, pooled_h, pooled_w);
  check(pooled_h <= std::numeric_limits<int32_t>::max() && pooled_w <= std::numeric_limits<int32_t>::max() &&
            channels % (pooled_h * pooled_w) == 0,
        op, "input must have a multiple of ", pooled_h, " x ", pooled_w, " channels, got ", channels);
}

inline void check_forward(const char* op, const Tensor& input, const Tensor& boxes, int64_t pooled_h,
                          int64_t pooled_w) {
  roi_pool::check_input(op, input, boxes);
  check_channels(op, input.size(1), pooled_h, pooled_w);
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& boxes, int64_t channels, int64_t height,
                           int64_t width, int64_t pooled_h, int64_t pooled_w) {
  check_dim(op, "grad", grad, 4, "(K, C / bins, height, width)");
  check_floating(op, "grad", grad);
  check_same_device(op, "grad", grad, "boxes", boxes);
  roi_pool::check_boxes(op, boxes);
  roi_pool::check_map(op, height, width);
  check_channels(op, channels, pooled_h, pooled_w);
  const int64_t channels_out = channels / (pooled_h * pooled_w);
  check(grad.size(0) == boxes.size(0) && grad.size(1) == channels_out && grad.size(2) == pooled_h &&
            grad.size(3) == pooled_w,
        op, "grad must have shape (", boxes.size(0), ", ", channels_out, ", ", pooled_h, ", ", pooled_w, "), got ",
        shape_of(grad));
}

}  // namespace ps_roi
}  // namespace d2proj
