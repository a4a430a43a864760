// What the entry points of both devices check first, and the dense copies that both kernels read.
#pragma once

#include "common/tensor.h"
#include "corner_pool/corner_pool.h"

namespace d2proj {
namespace corner_pool {

inline void check_input(const char* op, const char* name, const Tensor& input) {
  check_dim(op, name, input, 4, "(N, C, H, W)");
  check_floating(op, name, input);
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like) {
  check_input(op, name, tensor);
  check_same_device(op, like_name, like, name, tensor);
  bool same = true;
  for (int64_t d = 0; d < 4; ++d) same = same && tensor.size(d) == like.size(d);
  check(same, op, name, " must have the shape of ", like_name, ", ", shape_of(like), ", got ", shape_of(tensor));
  check(tensor.scalar_type() == like.scalar_type(), op, name, " must have the dtype of ", like_name, ", ",
        torch::headeronly::toString(like.scalar_type()), ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_axis(const char* op, int64_t dim) {
  check(dim == 2 || dim == 3, op, "dim must be 2 or 3, got ", dim);
}

// Asked of the dispatcher only where it copies: that costs as much as a small map.
inline Tensor dense(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(tensor, format_of(channels_last));
}

inline Tensor empty_like(const Tensor& t, bool channels_last) {
  return empty_4d(t, t.size(0), t.size(1), t.size(2), t.size(3), channels_last);
}

inline Scan scan_of(const Tensor& t, bool channels_last, int64_t dim, bool from_end) {
  return make_scan(t.size(0), t.size(1), t.size(2), t.size(3), channels_last, dim, from_end);
}

}  // namespace corner_pool
}  // namespace d2proj
