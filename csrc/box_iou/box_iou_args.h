// Argument checks and preparation that both devices' entry points share.
#pragma once

#include <initializer_list>
#include <type_traits>
#include <vector>

#include "box_iou/box_iou.h"
#include "common/tensor.h"

namespace d2proj {
namespace iou {

inline const char* pairwise_name(int64_t kind) {
  constexpr const char* kNames[] = {"box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"};
  check(kind >= 0 && kind < 4, "pairwise_box_iou", "kind must be 0 to 3, got ", kind);
  return kNames[kind];
}

inline const char* loss_name(int64_t kind) {
  constexpr const char* kNames[] = {"iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss",
                                    "complete_box_iou_loss"};
  check(kind >= 0 && kind < 4, "box_iou_loss", "kind must be 0 to 3, got ", kind);
  return kNames[kind];
}

inline void check_boxes(const char* op, const Tensor& boxes1, const Tensor& boxes2) {
  check_box_dtype(op, "boxes1", boxes1);
  check_box_dtype(op, "boxes2", boxes2);
  check(boxes1.scalar_type() == boxes2.scalar_type(), op, "boxes2 must have the dtype of boxes1, ",
        torch::headeronly::toString(boxes1.scalar_type()), ", got ", torch::headeronly::toString(boxes2.scalar_type()));
  check_same_device(op, "boxes1", boxes1, "boxes2", boxes2);
}

// (..., N, 4) and (..., M, 4) with the same leading sizes.
struct Sizes {
  int64_t batch, rows, columns;
};

inline Sizes check_pairwise(const char* op, const Tensor& boxes1, const Tensor& boxes2, int64_t kind, int64_t format) {
  check(format >= 0 && format < 3, op, "format must be 0 to 2, got ", format);
  check(format == 0 || kind == 0, op, "boxes must be corners, x1 y1 x2 y2");
  const int64_t dim = boxes1.dim();
  check(dim >= 2 && boxes1.size(dim - 1) == 4, op, "boxes1 must have shape (..., N, 4), got ", shape_of(boxes1));
  check(boxes2.dim() == dim && boxes2.size(dim - 1) == 4, op, "boxes2 must have shape (..., M, 4) with as many ",
        "dimensions as boxes1 ", shape_of(boxes1), ", got ", shape_of(boxes2));
  Sizes sizes{1, boxes1.size(dim - 2), boxes2.size(dim - 2)};
  for (int64_t d = 0; d + 2 < dim; ++d) {
    check(boxes1.size(d) == boxes2.size(d), op, "boxes2 must have the leading sizes of boxes1 ", shape_of(boxes1),
          ", got ", shape_of(boxes2));
    sizes.batch *= boxes1.size(d);
  }
  check_boxes(op, boxes1, boxes2);
  return sizes;
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& boxes1) {
  check(grad.scalar_type() == boxes1.scalar_type(), op, "grad must have the dtype of boxes1, ",
        torch::headeronly::toString(boxes1.scalar_type()), ", got ", torch::headeronly::toString(grad.scalar_type()));
  check_same_device(op, "boxes1", boxes1, "grad", grad);
}

inline void check_pairwise_grad(const char* op, const Tensor& grad, const Sizes& s) {
  check(grad.dim() >= 2 && grad.numel() == s.batch * s.rows * s.columns && grad.size(grad.dim() - 1) == s.columns, op,
        "grad must have the shape of the result, got ", shape_of(grad));
}

// Returns the number of pairs.
inline int64_t check_loss(const char* op, const Tensor& boxes1, const Tensor& boxes2, int64_t reduction) {
  const int64_t dim = boxes1.dim();
  check(dim >= 1 && boxes1.size(dim - 1) == 4, op, "boxes1 must have shape (..., 4), got ", shape_of(boxes1));
  bool same = boxes2.dim() == dim;
  for (int64_t d = 0; same && d < dim; ++d) same = boxes1.size(d) == boxes2.size(d);
  check(same, op, "boxes2 must have the shape of boxes1, ", shape_of(boxes1), ", got ", shape_of(boxes2));
  check(reduction >= 0 && reduction < 3, op, "reduction must be 0 (none), 1 (mean) or 2 (sum), got ", reduction);
  check_boxes(op, boxes1, boxes2);
  return boxes1.numel() / 4;
}

// All sizes of `like` but the last `drop`, then `more`.
inline Tensor empty_after(const Tensor& like, int64_t drop, std::initializer_list<int64_t> more) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + drop < like.dim(); ++d) sizes.push_back(like.size(d));
  sizes.insert(sizes.end(), more);
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

// Calls `body(std::integral_constant<Kind, kind>{})`.
template <typename Body>
void with_kind(int64_t kind, const Body& body) {
  switch (static_cast<Kind>(kind)) {
    case Kind::kIou:
      return body(std::integral_constant<Kind, Kind::kIou>{});
    case Kind::kGeneralized:
      return body(std::integral_constant<Kind, Kind::kGeneralized>{});
    case Kind::kDistance:
      return body(std::integral_constant<Kind, Kind::kDistance>{});
    default:
      return body(std::integral_constant<Kind, Kind::kComplete>{});
  }
}

// Calls `body(T{})` with the boxes' type.
template <typename Body>
void with_box_type(const Tensor& boxes, const Body& body) {
  boxes.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

}  // namespace iou
}  // namespace d2proj
