// Argument checks that the CPU and the CUDA entry points of box fusion share.
#pragma once

#include <limits>
#include <tuple>

#include "box_fusion/box_fusion.h"
#include "common/tensor.h"

namespace d2proj {
namespace fusion {

// Boxes of all models, one after the other; contiguous. Floating inputs are float64 if either is, else float32.
struct Inputs {
  Tensor boxes, scores, labels, models, weights;
  ScalarType type;
  int64_t count;
};

inline Tensor dense_as(const Tensor& tensor, ScalarType type) {
  const Tensor typed = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

inline void check_column(const char* op, const char* name, const Tensor& column, const Tensor& boxes) {
  check(column.dim() == 1 && column.size(0) == boxes.size(0), op, name, " must have shape (", boxes.size(0),
        ",) as boxes has ", boxes.size(0), " rows, got ", shape_of(column));
  check_same_device(op, "boxes", boxes, name, column);
}

inline void check_long(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.scalar_type() == ScalarType::Long, op, name, " must be int64, got ",
        torch::headeronly::toString(tensor.scalar_type()));
}

inline Inputs prepare_inputs(const char* op, const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                             const Tensor& models, const Tensor& weights) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, op, "boxes must have shape (N, 4), got ", shape_of(boxes));
  check_floating(op, "boxes", boxes);
  check(boxes.size(0) <= std::numeric_limits<int32_t>::max(), op, "boxes must be fewer than 2^31, got ", boxes.size(0));
  check_column(op, "scores", scores, boxes);
  check_floating(op, "scores", scores);
  check_column(op, "labels", labels, boxes);
  check_long(op, "labels", labels);
  check_column(op, "models", models, boxes);
  check_long(op, "models", models);
  check_dim(op, "weights", weights, 1, "(T,)");
  check(weights.scalar_type() == ScalarType::Double, op, "weights must be float64, got ",
        torch::headeronly::toString(weights.scalar_type()));
  check_same_device(op, "boxes", boxes, "weights", weights);
  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  return {dense_as(boxes, type),
          dense_as(scores, type),
          dense_as(labels, ScalarType::Long),
          dense_as(models, ScalarType::Long),
          dense_as(weights, ScalarType::Double),
          type,
          boxes.size(0)};
}

inline Settings fusion_settings(double iou_threshold, double skip_threshold, int64_t conf_type, bool allows_overflow,
                                const Tensor& weights) {
  check(conf_type >= 0 && conf_type <= 3, "weighted_boxes_fusion", "conf_type must be 0 to 3, got ", conf_type);
  return {false, static_cast<Confidence>(conf_type), allows_overflow, iou_threshold, skip_threshold, weights.numel()};
}

inline Settings weighted_settings(double iou_threshold, double skip_threshold, const Tensor& weights) {
  return {true, Confidence::kAverage, false, iou_threshold, skip_threshold, weights.numel()};
}

// Boxes, scores and labels of `count` clusters, not filled in.
using Fused = std::tuple<Tensor, Tensor, Tensor>;
inline Fused empty_result(const Inputs& inputs, int64_t count) {
  const int64_t sizes[2] = {count, 4};
  return {torch::stable::new_empty(inputs.boxes, {sizes, 2}), torch::stable::new_empty(inputs.boxes, {&count, 1}),
          torch::stable::new_empty(inputs.labels, {&count, 1})};
}

}  // namespace fusion
}  // namespace d2proj
