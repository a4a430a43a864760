// What the entry points of both devices check first, and the numbers they take from their arguments.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "common/tensor.h"
#include "multilevel_roi_align/multilevel_roi_align.h"
#include "roi_align/roi_align_args.h"

namespace d2proj {
namespace multilevel_roi_align {

using Levels = std::optional<Tensor>;

inline Assignment check_levels(const char* op, const Tensor& boxes, const Levels& levels,
                               const std::vector<double>& scales, int64_t reduce, double canonical_size,
                               int64_t canonical_level) {
  check(reduce >= 0 && reduce <= 3, op, "reduce must be assigned, none, sum or max");
  check(!scales.empty() && scales.size() <= kMaxLevels, op, "there must be 1 to ", kMaxLevels, " levels, got ",
        scales.size());
  const bool assigned = static_cast<Reduce>(reduce) == Reduce::kAssigned;
  Assignment a{canonical_size, canonical_level, 0, static_cast<int64_t>(scales.size())};
  if (levels) {
    check(assigned, op, "levels are only for reduce='assigned'");
    check(levels->dim() == 1 && levels->size(0) == boxes.size(0), op, "levels must have shape (", boxes.size(0),
          "), got ", shape_of(*levels));
    check(levels->scalar_type() == ScalarType::Long, op, "levels must be int64, got ",
          torch::headeronly::toString(levels->scalar_type()));
    check_same_device(op, "boxes", boxes, "levels", *levels);
  } else if (assigned) {
    const double first = -std::log2(scales[0]);
    for (size_t i = 0; i < scales.size(); ++i) {
      check(std::abs(first) < 64 && -std::log2(scales[i]) == std::floor(first) + static_cast<double>(i), op,
            "spatial_scales must be halving powers of two (or levels given), got ", scales[i], " at level ", i);
    }
    check(canonical_size > 0, op, "canonical_size must be positive, got ", canonical_size);
    a.min_level = static_cast<int64_t>(first);
  }
  return a;
}

inline Assignment check_forward(const char* op, const std::vector<Tensor>& inputs, const Tensor& boxes,
                                const Levels& levels, const std::vector<double>& scales, int64_t pooled_h,
                                int64_t pooled_w, int64_t reduce, double canonical_size, int64_t canonical_level) {
  check(!inputs.empty() && inputs.size() == scales.size(), op, "there must be one map for each of the ", scales.size(),
        " spatial_scales, got ", inputs.size());
  for (const Tensor& input : inputs) {
    roi_align::check_forward(op, input, boxes, pooled_h, pooled_w);
    check(input.size(0) == inputs[0].size(0) && input.size(1) == inputs[0].size(1), op,
          "inputs must have the same batch size and channels, got ", shape_of(inputs[0]), " and ", shape_of(input));
    check(input.scalar_type() == inputs[0].scalar_type(), op, "inputs must have one dtype, got ",
          torch::headeronly::toString(inputs[0].scalar_type()), " and ",
          torch::headeronly::toString(input.scalar_type()));
  }
  return check_levels(op, boxes, levels, scales, reduce, canonical_size, canonical_level);
}

// Rows of the result: one for each box or, unreduced, for each box and level.
inline int64_t row_count(const Tensor& boxes, int64_t reduce, size_t levels) {
  return boxes.size(0) * (static_cast<Reduce>(reduce) == Reduce::kNone ? static_cast<int64_t>(levels) : 1);
}

inline Assignment check_backward(const char* op, const Tensor& grad, const Tensor& winner, const Tensor& boxes,
                                 const Levels& levels, const std::vector<double>& scales, int64_t channels,
                                 int64_t pooled_h, int64_t pooled_w, const std::vector<int64_t>& heights,
                                 const std::vector<int64_t>& widths, const std::vector<int64_t>& channels_last,
                                 int64_t reduce, double canonical_size, int64_t canonical_level) {
  check_dim(op, "grad", grad, 4, "(K, C, height, width)");
  check_floating(op, "grad", grad);
  check_same_device(op, "grad", grad, "boxes", boxes);
  roi_align::check_arguments(op, boxes, pooled_h, pooled_w);
  check(heights.size() == scales.size() && widths.size() == scales.size() && channels_last.size() == scales.size(), op,
        "there must be a size for each level");
  const Assignment a = check_levels(op, boxes, levels, scales, reduce, canonical_size, canonical_level);
  const int64_t rows = row_count(boxes, reduce, scales.size());
  check(grad.size(0) == rows && grad.size(1) == channels && grad.size(2) == pooled_h && grad.size(3) == pooled_w, op,
        "grad must have shape (", rows, ", ", channels, ", ", pooled_h, ", ", pooled_w, "), got ", shape_of(grad));
  if (static_cast<Reduce>(reduce) == Reduce::kMax) {
    check(winner.scalar_type() == ScalarType::Char && shape_of(winner) == shape_of(grad), op,
          "winner must be int8 of grad's shape, got ", shape_of(winner));
    check_same_device(op, "grad", grad, "winner", winner);
  }
  return a;
}

// The levels of maxima, laid out as the result; without a value where there are none.
inline Tensor empty_winner(const Tensor& out, int64_t reduce, bool channels_last) {
  const bool any = static_cast<Reduce>(reduce) == Reduce::kMax;
  const int64_t sizes[4] = {any ? out.size(0) : 0, out.size(1), out.size(2), out.size(3)};
  return torch::stable::empty({sizes, 4}, ScalarType::Char, std::nullopt, out.device(), std::nullopt,
                              format_of(channels_last));
}

}  // namespace multilevel_roi_align
}  // namespace d2proj
