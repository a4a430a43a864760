// IoU of every pair of rotated boxes on the CPU: a row of the result at a time, boxes2 in the lanes.
//
// Most pairs are apart, which the upright boxes around them tell. Where few lanes of a vector are not, these are set
// aside until they fill a vector of their own.
#include "box_iou_rotated/box_iou_rotated_cpu.h"
#include "box_iou_rotated/box_iou_rotated_args.h"

namespace d2proj {
namespace {

constexpr int64_t kPairsPerTask = 16384;

template <typename T>
struct Pairwise {
  template <simd::Level L>
  static D2_INLINE void run(const T* rows1, const rotated::Columns<T>& boxes2, int64_t columns, T* out, int64_t begin,
                            int64_t end) {
    using V = typename simd::Native<L, T>::Vector;
    constexpr int kLanes = simd::Native<L, T>::kLanes;
    for (int64_t i = begin; i < end; ++i) {
      const rotated::Box<T> one = rotated::prepare(rows1 + 5 * i);
      const rotated::Box<V> a = rotated::broadcast<V>(one);
      T* const row = out + i * columns;
      uint32_t aside[2 * kLanes];
      int waiting = 0;
      const auto work_off = [&](int count) __attribute__((always_inline)) {
        for (int k = count; k < kLanes; ++k) aside[k] = aside[0];
        T lanes[kLanes];
        simd::store(lanes, rotated::iou(a, boxes2.template gather<V>(aside)));
        for (int k = 0; k < count; ++k) row[aside[k]] = lanes[k];
      };
      for (int64_t j = 0; j < columns; j += kLanes) {
        const rotated::Box<V> b = boxes2.template load<V>(j);
        uint32_t close = ~simd::bits<L, T>(rotated::apart(a, b)) & ((uint32_t(1) << kLanes) - 1);
        V result = {};
        if (__builtin_popcount(close) * 3 >= kLanes) {
          result = rotated::iou(a, b);
        } else {
          for (; close != 0; close &= close - 1) {
            aside[waiting++] = static_cast<uint32_t>(j + __builtin_ctz(close));
          }
        }
        if (j + kLanes <= columns) {
          simd::store(row + j, result);
        } else {
          T lanes[kLanes];
          simd::store(lanes, result);
          std::copy(lanes, lanes + (columns - j), row + j);
        }
        if (waiting >= kLanes) {
          work_off(kLanes);
          waiting -= kLanes;
          for (int k = 0; k < waiting; ++k) aside[k] = aside[kLanes + k];
        }
      }
      if (waiting > 0) work_off(waiting);
    }
  }
};

template <typename T>
void all_pairs(const Tensor& rows1, const Tensor& rows2, Tensor& result) {
  const int64_t rows = rows1.size(0), columns = rows2.size(0);
  const T* const first = static_cast<const T*>(rows1.const_data_ptr());
  const T* const second = static_cast<const T*>(rows2.const_data_ptr());
  rotated::Columns<T> boxes2;
  boxes2.reset(columns);
  for (int64_t j = 0; j < columns; ++j) boxes2.set(j, rotated::prepare(second + 5 * j));
  T* const out = static_cast<T*>(result.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kPairsPerTask / columns);
  const auto work = [&](int64_t begin, int64_t end) {
    simd::dispatch<Pairwise<T>>(first, boxes2, columns, out, begin, end);
  };
  rows <= grain ? work(0, rows) : torch::stable::parallel_for(0, rows, grain, work);
}

Tensor box_iou_rotated_cpu(const Tensor& boxes1, const Tensor& boxes2) {
  auto [rows1, rows2, result] = rotated::prepare_pairs(boxes1, boxes2);
  check(boxes2.size(0) <= int64_t(1) << 31, "box_iou_rotated", "boxes2 must be at most 2^31, got ", boxes2.size(0));
  if (result.numel() == 0) return result;
  const bool wide = result.scalar_type() == ScalarType::Double;
  wide ? all_pairs<double>(rows1, rows2, result) : all_pairs<float>(rows1, rows2, result);
  return result;
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("box_iou_rotated", TORCH_BOX(&d2proj::box_iou_rotated_cpu)); }
