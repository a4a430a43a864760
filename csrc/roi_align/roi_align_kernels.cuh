// What RoIAlign's CUDA kernels share: how threads are laid over a result, one bin forwards and backwards, launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/cuda.h"
#include "common/tensor.h"
#include "roi_align/roi_align.h"

namespace d2proj {
namespace roi_align {

constexpr int kThreads = 256;

struct Strides {
  int64_t n, c, h, w;
};

template <typename T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T lane[kVec];
};

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

// Adds kVec values at `to`, in one transaction where the hardware can (float4 from sm_90 on).
template <typename A, int kVec>
__device__ __forceinline__ void atomic_add(A* to, const A (&value)[kVec], A weight) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFloat4 = std::is_same_v<A, float> && kVec == 4;
#else
  constexpr bool kFloat4 = false;
#endif
  if constexpr (kFloat4) {
    atomicAdd(reinterpret_cast<float4*>(to),
              make_float4(weight * value[0], weight * value[1], weight * value[2], weight * value[3]));
  } else {
#pragma unroll
    for (int v = 0; v < kVec; ++v) atomicAdd(to + v, weight * value[v]);
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

inline Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Whether kVec channels can be moved at once: they lie side by side, and every address is aligned to their size.
inline bool can_vectorise(const Tensor& t, int64_t vec, size_t element_size) {
  const bool strides = t.stride(1) == 1 && t.stride(0) % vec == 0 && t.stride(2) % vec == 0 && t.stride(3) % vec == 0;
  return strides && t.size(1) % vec == 0 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (vec * element_size) == 0;
}

inline unsigned grid_for(int64_t total) {
  return static_cast<unsigned>(std::min<int64_t>((total + kThreads - 1) / kThreads, int64_t(1) << 22));
}

// Calls `body(I{})` with 32-bit indices where every number up to total + one grid of threads fits, else 64-bit ones.
template <typename Body>
void with_index(int64_t total, const Body& body) {
  const int64_t margin = static_cast<int64_t>(grid_for(total)) * kThreads;
  if (total + margin < std::numeric_limits<uint32_t>::max()) {
    body(uint32_t{});
  } else {
    body(uint64_t{});
  }
}

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
