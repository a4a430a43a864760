// Argument checks that the CPU and the CUDA entry points of NMS share.
#pragma once

#include <limits>
#include <optional>

#include "common/tensor.h"

namespace d2proj {
namespace nms {

// Ranks are held in 32 bits.
constexpr int64_t kMostBoxes = std::numeric_limits<int32_t>::max();

// `columns` of a row of boxes.
inline void check_arguments(const char* op, const Tensor& boxes, const Tensor& scores,
                            const std::optional<Tensor>& idxs, int64_t columns = 4) {
  check(boxes.dim() == 2 && boxes.size(1) == columns, op, "boxes must have shape (N, ", columns, "), got ",
        shape_of(boxes));
  check_floating(op, "boxes", boxes);
  const int64_t count = boxes.size(0);
  check(count <= kMostBoxes, op, "boxes must be fewer than 2^31, got ", count);
  check(scores.dim() == 1 && scores.size(0) == count, op, "scores must have shape (", count, ",) as boxes has ", count,
        " rows, got ", shape_of(scores));
  check_floating(op, "scores", scores);
  check_same_device(op, "boxes", boxes, "scores", scores);
  if (idxs.has_value()) {
    check(idxs->dim() == 1 && idxs->size(0) == count, op, "idxs must have shape (", count, ",) as boxes has ", count,
          " rows, got ", shape_of(*idxs));
    check(idxs->scalar_type() == ScalarType::Long, op, "idxs must be int64, got ",
          torch::headeronly::toString(idxs->scalar_type()));
    check_same_device(op, "boxes", boxes, "idxs", *idxs);
  }
}

// Boxes as the kernels take them: contiguous, half types raised to float32 (exactly).
inline Tensor prepare_boxes(const Tensor& boxes) {
  const ScalarType type = boxes.scalar_type();
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  return torch::stable::contiguous(half ? torch::stable::to(boxes, ScalarType::Float) : boxes);
}

// What ops that give back boxes with scores compute in: float64 if either is, else float32.
inline ScalarType dets_dtype(const Tensor& boxes, const Tensor& scores) {
  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

}  // namespace nms
}  // namespace d2proj
