// What the entry points of both devices check first, and the dense copies that both kernels read.
#pragma once

#include "common/tensor.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss.h"

namespace d2proj {
namespace sigmoid_focal_loss {

inline bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

// Targets are either a value for each logit, or the class (int64) of each row of logits.
inline bool are_classes(const Tensor& targets) { return targets.scalar_type() == ScalarType::Long; }

inline void check_forward(const char* op, const Tensor& inputs, const Tensor& targets, double gamma,
                          int64_t reduction) {
  check_floating(op, "inputs", inputs);
  check_same_device(op, "inputs", inputs, "targets", targets);
  if (are_classes(targets)) {
    bool rows = targets.dim() + 1 == inputs.dim();
    for (int64_t d = 0; rows && d < targets.dim(); ++d) rows = targets.size(d) == inputs.size(d);
    check(rows, op, "classes in targets must have the shape of inputs without its last dimension, inputs ",
          shape_of(inputs), ", got ", shape_of(targets));
  } else {
    check(same_shape(inputs, targets), op, "targets must have the shape of inputs, ", shape_of(inputs), ", got ",
          shape_of(targets));
    check(targets.scalar_type() == inputs.scalar_type(), op, "targets must have the dtype of inputs, got ",
          torch::headeronly::toString(targets.scalar_type()));
  }
  check(gamma >= 0, op, "gamma must be 0 or more, got ", gamma);
  check(reduction >= kNone && reduction <= kSum, op, "reduction must be 0, 1 or 2, got ", reduction);
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                           double gamma, int64_t reduction) {
  check_forward(op, inputs, targets, gamma, reduction);
  check_same_device(op, "inputs", inputs, "grad", grad);
  check(grad.scalar_type() == inputs.scalar_type(), op, "grad must have the dtype of inputs, got ",
        torch::headeronly::toString(grad.scalar_type()));
  if (reduction == kNone) {
    check(same_shape(grad, inputs), op, "grad must have the shape of inputs, got ", shape_of(grad));
  } else {
    check(grad.dim() == 0, op, "grad must have shape (), got ", shape_of(grad));
  }
}

inline Tensor dense(const Tensor& tensor, bool channels_last) {
  return torch::stable::contiguous(tensor, format_of(channels_last));
}

inline Tensor empty_like(const Tensor& t, bool channels_last) {
  return torch::stable::empty(t.sizes(), t.scalar_type(), std::nullopt, t.device(), std::nullopt,
                              format_of(channels_last));
}

// Element-wise targets may stay channels-last; classes count along the last dimension.
inline bool keep_channels_last(const Tensor& inputs, const Tensor& targets) {
  return !are_classes(targets) && is_channels_last(inputs);
}

// Calls `body(std::integral_constant<int, k>{})` with gamma where it has a path of its own, else -1.
template <typename Body>
inline void with_gamma(double gamma, const Body& body) {
  if (gamma == 2) return body(std::integral_constant<int, 2>{});
  if (gamma == 1) return body(std::integral_constant<int, 1>{});
  if (gamma == 0) return body(std::integral_constant<int, 0>{});
  body(std::integral_constant<int, -1>{});
}

}  // namespace sigmoid_focal_loss
}  // namespace d2proj
