// The boxes of RoI ops on the CPU: (K, 5) rows of image index and corners (rotated ones have 6 columns).
#pragma once

#include <type_traits>
#include <vector>

#include "common/tensor.h"

namespace d2proj {

// The boxes of one image, in order.
struct ImageBoxes {
  int64_t image;
  std::vector<int64_t> boxes;
};

// `columns` of a row; the first is the image. An image index that is out of range is an error.
template <typename A>
std::vector<ImageBoxes> group_by_image(const char* op, const A* boxes, int64_t count, int64_t images,
                                       int64_t columns = 5) {
  std::vector<ImageBoxes> groups(images);
  for (int64_t n = 0; n < images; ++n) groups[n].image = n;
  for (int64_t k = 0; k < count; ++k) {
    const A index = boxes[k * columns];
    check(index >= A(0) && index < static_cast<A>(images), op, "boxes[", k, ", 0] must be an image index from 0 to ",
          images - 1, ", got ", index);
    groups[static_cast<int64_t>(index)].boxes.push_back(k);
  }
  return groups;
}

// Contiguous, in the type that the kernel computes coordinates in.
template <typename A>
Tensor boxes_as(const Tensor& boxes) {
  const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(boxes.scalar_type() == type ? boxes : torch::stable::to(boxes, type));
}

}  // namespace d2proj
