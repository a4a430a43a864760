// What RoIAlign's CUDA kernels share: how threads are laid over a result, one bin forwards and backwards, launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/cuda.h"
#include "common/launch.cuh"
#include "common/tensor.h"
#include "roi_align/roi_align.h"

namespace d2proj {
namespace roi_align {

// Splits a thread's number into box, bin and first channel, in the order in which the result lies in memory.
struct Place {
  int64_t k, c, ph, pw;
};

template <typename I, bool kLast, int kVec>
__device__ __forceinline__ Place place_of(I index, int64_t channels, int64_t pooled_h, int64_t pooled_w) {
  const I ph_count = static_cast<I>(pooled_h), pw_count = static_cast<I>(pooled_w);
  const I groups = static_cast<I>(channels / kVec);
  I c, ph, pw;
  if (kLast) {
    c = index % groups;
    index /= groups;
    pw = index % pw_count;
    index /= pw_count;
    ph = index % ph_count;
    index /= ph_count;
  } else {
    pw = index % pw_count;
    index /= pw_count;
    ph = index % ph_count;
    index /= ph_count;
    c = index % groups;
    index /= groups;
  }
  return {static_cast<int64_t>(index), static_cast<int64_t>(c) * kVec, static_cast<int64_t>(ph),
          static_cast<int64_t>(pw)};
}

// Adds a bin's samples of kVec channels (not yet divided by their number) to `sum`.
template <typename T, typename A, int kVec>
__device__ __forceinline__ void pool_bin(const T* __restrict__ map, const Strides& in, const Axis<A>& y,
                                         const Axis<A>& x, int64_t ph, int64_t pw, int64_t height, int64_t width,
                                         A (&sum)[kVec]) {
  using Lanes = Pack<T, kVec>;
  const SampleRange ys = sample_range(y, ph, height), xs = sample_range(x, pw, width);
  for (int64_t iy = ys.first; iy < ys.last; ++iy) {
    Taps<A> ty;
    if (!taps_at(y.sample(ph, iy), height, ty)) continue;
    const T* low = map + ty.low * in.h;
    const T* high = map + ty.high * in.h;
    for (int64_t ix = xs.first; ix < xs.last; ++ix) {
      Taps<A> tx;
      if (!taps_at(x.sample(pw, ix), width, tx)) continue;
      const Lanes v00 = *reinterpret_cast<const Lanes*>(low + tx.low * in.w);
      const Lanes v01 = *reinterpret_cast<const Lanes*>(low + tx.high * in.w);
      const Lanes v10 = *reinterpret_cast<const Lanes*>(high + tx.low * in.w);
      const Lanes v11 = *reinterpret_cast<const Lanes*>(high + tx.high * in.w);
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        sum[v] += ty.w_low * (tx.w_low * static_cast<A>(v00.lane[v]) + tx.w_high * static_cast<A>(v01.lane[v])) +
                  ty.w_high * (tx.w_low * static_cast<A>(v10.lane[v]) + tx.w_high * static_cast<A>(v11.lane[v]));
      }
    }
  }
}

// Adds a bin's gradient (divided by the number of samples) to the pixels that it was pooled from.
template <typename A, int kVec>
__device__ __forceinline__ void spread_bin(A* __restrict__ map, const Strides& out, const Axis<A>& y, const Axis<A>& x,
                                           int64_t ph, int64_t pw, int64_t height, int64_t width,
                                           const A (&share)[kVec]) {
  const SampleRange ys = sample_range(y, ph, height), xs = sample_range(x, pw, width);
  for (int64_t iy = ys.first; iy < ys.last; ++iy) {
    Taps<A> ty;
    if (!taps_at(y.sample(ph, iy), height, ty)) continue;
    A* low = map + ty.low * out.h;
    A* high = map + ty.high * out.h;
    for (int64_t ix = xs.first; ix < xs.last; ++ix) {
      Taps<A> tx;
      if (!taps_at(x.sample(pw, ix), width, tx)) continue;
      atomic_add<A, kVec>(low + tx.low * out.w, share, ty.w_low * tx.w_low);
      if (tx.w_high != A(0)) atomic_add<A, kVec>(low + tx.high * out.w, share, ty.w_low * tx.w_high);
      if (ty.w_high == A(0)) continue;
      atomic_add<A, kVec>(high + tx.low * out.w, share, ty.w_high * tx.w_low);
      if (tx.w_high != A(0)) atomic_add<A, kVec>(high + tx.high * out.w, share, ty.w_high * tx.w_high);
    }
  }
}

// ---- deterministic backward ----

constexpr int kTile = 16;     // a block owns 16 x 16 pixels ...
constexpr int kChannels = 8;  // ... of 8 channels

// The weight of a pixel in bin `b` along one axis.
template <typename A>
__device__ __forceinline__ A weight_of(const Axis<A>& axis, int64_t b, int64_t pixel, int64_t size) {
  const SampleRange range = sample_range(axis, b, size);
  A weight = A(0);
  for (int64_t i = range.first; i < range.last; ++i) {
    Taps<A> taps;
    if (!taps_at(axis.sample(b, i), size, taps)) continue;
    if (taps.low == pixel) weight += taps.w_low;
    if (taps.high == pixel && taps.high != taps.low) weight += taps.w_high;
  }
  return weight;
}

// Whether the box can reach the pixels [first, first + kTile) along an axis.
template <typename A>
__device__ __forceinline__ bool reaches(const Axis<A>& axis, int64_t pooled, int64_t first) {
  const A end = axis.start + static_cast<A>(pooled) * axis.bin;
  const A low = axis.start < end ? axis.start : end, high = axis.start < end ? end : axis.start;
  // Samples as far as a pixel outside the map count for its border, hence the wider margin; those of a box far larger
  // than the map are rounded by more than that.
  const A margin = A(2) + A(1e-6) * (high - low);
  return high >= static_cast<A>(first) - margin && low <= static_cast<A>(first + kTile) + margin;
}

// ---- launches ----

// Calls `body(B{})` with the boxes' type.
template <typename Body>
void with_box_type(const Tensor& boxes, const Body& body) {
  if (boxes.scalar_type() == ScalarType::Double) {
    body(double{});
  } else {
    body(float{});
  }
}

}  // namespace roi_align
}  // namespace d2proj
