// Rotated boxes on the CPU: structures of arrays, and the vectors that are read from them.
#pragma once

#include <algorithm>
#include <vector>

#include "box_iou_rotated/box_iou_rotated.h"
#include "common/lanes.h"

namespace d2proj {
namespace rotated {

// Boxes field by field, followed by enough that overlap nothing for a whole vector to be read at any slot.
template <typename T>
class Columns {
 public:
  void reset(int64_t count) {
    stride_ = count + kOverread;
    data_.assign(kFields * stride_, T(0));
    const T ex = nothing<T>().ex;
    std::fill(data_.begin() + 6 * stride_, data_.begin() + 8 * stride_, ex);
  }

  void set(int64_t slot, const Box<T>& box) {
    T* const to = data_.data() + slot;
    const T fields[kFields] = {box.cx, box.cy, box.w, box.h, box.cos, box.sin, box.ex, box.ey, box.area};
    for (int f = 0; f < kFields; ++f) to[f * stride_] = fields[f];
  }

  Box<T> get(int64_t slot) const {
    T fields[kFields];
    for (int f = 0; f < kFields; ++f) fields[f] = data_[f * stride_ + slot];
    return {fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], fields[7], fields[8]};
  }

  template <typename V>
  D2_INLINE Box<V> load(int64_t slot) const {
    Box<V> box;
    V* const fields[kFields] = {&box.cx, &box.cy, &box.w, &box.h, &box.cos, &box.sin, &box.ex, &box.ey, &box.area};
    for (int f = 0; f < kFields; ++f) simd::load(*fields[f], data_.data() + f * stride_ + slot);
    return box;
  }

  // Boxes from any slots, one a lane.
  template <typename V>
  D2_INLINE Box<V> gather(const uint32_t* slots) const {
    constexpr int kLanes = sizeof(V) / sizeof(T);
    T lanes[kFields][kLanes];
    for (int f = 0; f < kFields; ++f) {
      for (int i = 0; i < kLanes; ++i) lanes[f][i] = data_[f * stride_ + slots[i]];
    }
    Box<V> box;
    V* const fields[kFields] = {&box.cx, &box.cy, &box.w, &box.h, &box.cos, &box.sin, &box.ex, &box.ey, &box.area};
    for (int f = 0; f < kFields; ++f) simd::load(*fields[f], lanes[f]);
    return box;
  }

 private:
  static constexpr int64_t kOverread = 16;

  std::vector<T> data_;
  int64_t stride_ = 0;
};

template <typename V, typename T>
D2_INLINE Box<V> broadcast(const Box<T>& box) {
  return {V{} + box.cx,  V{} + box.cy, V{} + box.w,  V{} + box.h,   V{} + box.cos,
          V{} + box.sin, V{} + box.ex, V{} + box.ey, V{} + box.area};
}

}  // namespace rotated
}  // namespace d2proj
