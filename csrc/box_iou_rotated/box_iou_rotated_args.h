// Argument checks that the CPU and the CUDA entry points of box_iou_rotated share.
#pragma once

#include "common/tensor.h"

namespace d2proj {
namespace rotated {

inline void check_boxes(const char* op, const char* name, const Tensor& boxes) {
  check(boxes.dim() == 2 && boxes.size(1) == 5, op, name, " must have shape (N, 5), got ", shape_of(boxes));
  check_floating(op, name, boxes);
}

// Contiguous rows of float64 or, for all other types, float32.
inline Tensor rows_as(const Tensor& boxes, ScalarType type) {
  const Tensor rows = boxes.scalar_type() == type ? boxes : torch::stable::to(boxes, type);
  return rows.is_contiguous() ? rows : torch::stable::contiguous(rows);
}

// What two sets of boxes are compared in.
inline ScalarType common_type(const Tensor& a, const Tensor& b) {
  const bool wide = a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

struct Pairs {
  Tensor rows1, rows2, result;
};

inline Pairs prepare_pairs(const Tensor& boxes1, const Tensor& boxes2) {
  constexpr const char* kOp = "box_iou_rotated";
  check_boxes(kOp, "boxes1", boxes1);
  check_boxes(kOp, "boxes2", boxes2);
  check_same_device(kOp, "boxes1", boxes1, "boxes2", boxes2);
  const ScalarType type = common_type(boxes1, boxes2);
  const int64_t sizes[2] = {boxes1.size(0), boxes2.size(0)};
  return {rows_as(boxes1, type), rows_as(boxes2, type), torch::stable::new_empty(boxes1, {sizes, 2}, type)};
}

}  // namespace rotated
}  // namespace d2proj
