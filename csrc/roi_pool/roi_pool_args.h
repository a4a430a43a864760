// What the entry points of both devices check first, and how their results lie in memory.
#pragma once

#include <limits>
#include <vector>

#include "common/tensor.h"
#include "roi_pool/roi_pool.h"

namespace d2proj {
namespace roi_pool {

inline void check_boxes(const char* op, const Tensor& boxes) {
  check_dim(op, "boxes", boxes, 2, "(K, 5)");
  check(boxes.size(1) == 5, op, "boxes must have shape (K, 5), got ", shape_of(boxes));
  check_box_dtype(op, "boxes", boxes);
}

inline void check_output_size(const char* op, int64_t pooled_h, int64_t pooled_w) {
  check(pooled_h > 0 && pooled_w > 0, op, "output_size must be positive, got (", pooled_h, ", ", pooled_w, ")");
}

inline void check_bins(const char* op, const std::vector<int64_t>& bins) {
  check(!bins.empty() && bins.size() <= kMaxGrids, op, "bins must have 1 to ", kMaxGrids, " entries, got ",
        bins.size());
  for (const int64_t b : bins) check(b > 0 && b < 32768, op, "bins must be from 1 to 32767, got ", b);
}

// A cell's index within its map is kept in 32 bits, as torchvision does.
inline void check_map(const char* op, int64_t height, int64_t width) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(height >= 0 && width >= 0 && (width == 0 || height <= kMost / width), op,
        "a map must have fewer than 2^31 cells, got ", height, " x ", width);
}

inline void check_input(const char* op, const Tensor& input, const Tensor& boxes) {
  check_dim(op, "input", input, 4, "(N, C, H, W)");
  check_floating(op, "input", input);
  check_same_device(op, "input", input, "boxes", boxes);
  check_map(op, input.size(2), input.size(3));
  check_boxes(op, boxes);
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& boxes, const Tensor& argmax,
                           const std::vector<int64_t>& shape, int64_t height, int64_t width) {
  check_floating(op, "grad", grad);
  check_same_device(op, "grad", grad, "boxes", boxes);
  check_same_device(op, "grad", grad, "argmax", argmax);
  check_boxes(op, boxes);
  check_map(op, height, width);
  for (const Tensor* t : {&grad, &argmax}) {
    bool equal = t->dim() == static_cast<int64_t>(shape.size());
    for (int64_t d = 0; equal && d < t->dim(); ++d) equal = t->size(d) == shape[d];
    check(equal, op, t == &grad ? "grad" : "argmax", " has the wrong shape: ", shape_of(*t),
          "; argmax is kept only if the forward pass is called with with_argmax");
  }
  check(argmax.scalar_type() == ScalarType::Int, op, "argmax must be int32, got ",
        torch::headeronly::toString(argmax.scalar_type()));
}

// The bins per channel of all grids.
inline int64_t bins_of(const std::vector<int64_t>& bins) {
  int64_t sum = 0;
  for (const int64_t b : bins) sum += b * b;
  return sum;
}

// roi_pool's one grid; the result is (K, C, pooled_h, pooled_w) in either memory format.
inline std::vector<Grid> roi_pool_grids(int64_t channels, int64_t pooled_h, int64_t pooled_w, bool channels_last) {
  return {{pooled_h, pooled_w, 0, channels_last ? 1 : pooled_h * pooled_w, channels_last ? channels : 1}};
}

// spatial_pyramid_pool's: one result (K, C, b, b) after the other in a row.
inline std::vector<Grid> pyramid_grids(int64_t channels, const std::vector<int64_t>& bins) {
  std::vector<Grid> grids;
  int64_t base = 0;
  for (const int64_t b : bins) {
    grids.push_back({b, b, base, b * b, 1});
    base += channels * b * b;
  }
  return grids;
}

// The two results of a forward pass; argmax is empty unless it is asked for.
struct Results {
  Tensor values, argmax;
};

inline Results empty_results(const Tensor& input, const std::vector<int64_t>& shape, bool channels_last,
                             bool with_argmax) {
  const MemoryFormat format = format_of(channels_last);
  const auto empty = [&](const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::empty({sizes.data(), sizes.size()}, type, std::nullopt, input.device(), std::nullopt,
                                sizes.size() == 4 ? format : MemoryFormat::Contiguous);
  };
  return {empty(shape, input.scalar_type()), empty(with_argmax ? shape : std::vector<int64_t>{0}, ScalarType::Int)};
}

// The same values in a memory format; asks torch only if they are not in it.
inline Tensor in_format(const Tensor& tensor, MemoryFormat format) {
  const bool already = format == MemoryFormat::Contiguous ? tensor.is_contiguous() : is_channels_last(tensor);
  return already ? tensor : torch::stable::contiguous(tensor, format);
}

// A map without cells: every bin is empty.
inline void clear(Results& results) {
  torch::stable::zero_(results.values);
  torch::stable::fill_(results.argmax, -1);
}

}  // namespace roi_pool
}  // namespace d2proj
