// Boxes in SIMD lanes: rows of four numbers from and to one vector a number. A vector is one register of the level that
// the code is compiled for, so that `times` can hold it back from a fused multiply-add.
#pragma once

#include <utility>

#include "box_iou/box_iou.h"
#include "common/simd.h"

namespace d2proj {
namespace iou {

template <typename T, int kBytes>
struct Vector;
template <typename T>
struct Vector<T, 16> {
  typedef T type __attribute__((vector_size(16)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> mask __attribute__((vector_size(16)));
};
template <typename T>
struct Vector<T, 32> {
  typedef T type __attribute__((vector_size(32)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> mask __attribute__((vector_size(32)));
};
template <typename T>
struct Vector<T, 64> {
  typedef T type __attribute__((vector_size(64)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> mask __attribute__((vector_size(64)));
};

constexpr int64_t kMostLanes = 16;

template <simd::Level L, typename T>
struct Lanes {
  static constexpr int kBytes = L == simd::Level::kAvx512 ? 64 : L == simd::Level::kAvx2 ? 32 : 16;
  static constexpr int64_t kCount = kBytes / sizeof(T);
  using V = typename Vector<T, kBytes>::type;
  using Mask = typename Vector<T, kBytes>::mask;

  // Elements 0, 2, 4 ... (1, 3, 5 ...) of a and b together.
  static D2_INLINE V even(const V& a, const V& b) { return pick<2, 0, 0>(a, b, Order{}); }
  static D2_INLINE V odd(const V& a, const V& b) { return pick<2, 0, 1>(a, b, Order{}); }
  // a[0] b[0] a[1] b[1] ..., its first and its second half.
  static D2_INLINE V low(const V& a, const V& b) { return pick<0, 1, 0>(a, b, Order{}); }
  static D2_INLINE V high(const V& a, const V& b) { return pick<0, 1, int(kCount) / 2>(a, b, Order{}); }

  static D2_INLINE void load_boxes(const T* from, Numbers<V>& box) {
    V r0, r1, r2, r3;
    simd::load(r0, from);
    simd::load(r1, from + kCount);
    simd::load(r2, from + 2 * kCount);
    simd::load(r3, from + 3 * kCount);
    const V ac0 = even(r0, r1), ac1 = even(r2, r3), bd0 = odd(r0, r1), bd1 = odd(r2, r3);
    box = {even(ac0, ac1), even(bd0, bd1), odd(ac0, ac1), odd(bd0, bd1)};
  }

  static D2_INLINE void store_boxes(T* to, const Numbers<V>& box) {
    const V ac0 = low(box.a, box.c), ac1 = high(box.a, box.c), bd0 = low(box.b, box.d), bd1 = high(box.b, box.d);
    simd::store(to, low(ac0, bd0));
    simd::store(to + kCount, high(ac0, bd0));
    simd::store(to + 2 * kCount, low(ac1, bd1));
    simd::store(to + 3 * kCount, high(ac1, bd1));
  }

  // The same for the first `count` boxes (values) alone; the other lanes are boxes of zeros (zeros).
  static D2_INLINE void load_some_boxes(const T* from, int64_t count, Numbers<V>& box) {
    if (count >= kCount) return load_boxes(from, box);
    T padded[4 * kCount] = {};
    for (int64_t i = 0; i < 4 * count; ++i) padded[i] = from[i];
    load_boxes(padded, box);
  }
  static D2_INLINE void store_some_boxes(T* to, int64_t count, const Numbers<V>& box) {
    if (count >= kCount) return store_boxes(to, box);
    T padded[4 * kCount];
    store_boxes(padded, box);
    for (int64_t i = 0; i < 4 * count; ++i) to[i] = padded[i];
  }
  static D2_INLINE void load_some(const T* from, int64_t count, V& value) {
    if (count >= kCount) return simd::load(value, from);
    T padded[kCount] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    simd::load(value, padded);
  }
  static D2_INLINE void store_some(T* to, int64_t count, const V& value) {
    if (count >= kCount) return simd::store(to, value);
    T padded[kCount];
    simd::store(padded, value);
    for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
  }

  static D2_INLINE T sum(const V& value) {
    T total = T(0);
    for (int64_t i = 0; i < kCount; ++i) total += value[i];
    return total;
  }

 private:
  using Order = std::make_integer_sequence<int, int(kCount)>;

  // Lane i takes element kStep * i, or (kZip) a's or b's element i / 2 in turns, kOffset further on.
  template <int kStep, int kZip, int kOffset, int... I>
  static D2_INLINE V pick(const V& a, const V& b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, (kStep * I + kZip * (I / 2 + I % 2 * int(kCount)) + kOffset)...);
#else
    return __builtin_shuffle(a, b, Mask{(kStep * I + kZip * (I / 2 + I % 2 * int(kCount)) + kOffset)...});
#endif
  }
};

}  // namespace iou
}  // namespace d2proj
