// What NMS ops that give back scores share on the CPU: arguments in one dtype, and the result.
#pragma once

#include <tuple>
#include <vector>

#include "nms/nms_decay.h"
#include "nms/nms_select.h"

namespace d2proj {
namespace nms {

// One box, one score and what becomes of them, by index.
template <typename T>
struct Dets {
  const Box<T>* boxes;
  const T* scores;
  std::vector<T> rescored;
  std::vector<uint8_t> kept;

  Dets(const Tensor& boxes, const Tensor& scores)
      : boxes(static_cast<const Box<T>*>(boxes.const_data_ptr())),
        scores(static_cast<const T*>(scores.const_data_ptr())),
        rescored(this->scores, this->scores + scores.size(0)),
        kept(scores.size(0), 0) {}

  // Keeps the boxes whose new score is not below `min_score`.
  void keep_from(T min_score) {
    for (size_t i = 0; i < kept.size(); ++i) kept[i] = stays(rescored[i], min_score);
  }

  // (k, 5) boxes with their new scores, and their indices: the highest score first, of equal ones the lower index.
  std::tuple<Tensor, Tensor> write(const Tensor& like, const Box<T>* new_boxes) const {
    std::vector<uint32_t> indices;
    std::vector<T> values;
    for (size_t i = 0; i < kept.size(); ++i) {
      if (!kept[i]) continue;
      indices.push_back(static_cast<uint32_t>(i));
      values.push_back(rescored[i]);
    }
    const int64_t sizes[2] = {static_cast<int64_t>(indices.size()), 5};
    Tensor dets = torch::stable::new_empty(like, {sizes, 2});
    Tensor keep = empty_indices(like, sizes[0]);
    T* row = static_cast<T*>(dets.mutable_data_ptr());
    int64_t* index = static_cast<int64_t*>(keep.mutable_data_ptr());
    for (const uint32_t k : rank_by_score<T>(values.data(), sizes[0])) {
      const Box<T>& box = new_boxes[indices[k]];
      *row++ = box.x1;
      *row++ = box.y1;
      *row++ = box.x2;
      *row++ = box.y2;
      *row++ = values[k];
      *index++ = indices[k];
    }
    return {dets, keep};
  }
};

// Calls body(T{}, boxes, scores) with both as contiguous tensors of T.
template <typename Body>
auto with_one_dtype(const Tensor& boxes, const Tensor& scores, const Body& body) {
  const ScalarType type = dets_dtype(boxes, scores);
  const Tensor b = torch::stable::contiguous(torch::stable::to(boxes, type));
  const Tensor s = torch::stable::contiguous(torch::stable::to(scores, type));
  return type == ScalarType::Double ? body(double{}, b, s) : body(float{}, b, s);
}

}  // namespace nms
}  // namespace d2proj
