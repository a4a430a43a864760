// What CUDA kernels over maps share: strides, lanes that move together, grids, index types.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/tensor.h"

namespace d2proj {

constexpr int kThreads = 256;  // of a block

struct Strides {
  int64_t n, c, h, w;
};

template <typename T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T lane[kVec];
};

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

inline Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Whether kVec channels can be moved at once: they lie side by side, and every address is aligned to their size.
inline bool can_vectorise(const Tensor& t, int64_t vec, size_t element_size) {
  const bool strides = t.stride(1) == 1 && t.stride(0) % vec == 0 && t.stride(2) % vec == 0 && t.stride(3) % vec == 0;
  return strides && t.size(1) % vec == 0 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (vec * element_size) == 0;
}

// Kernels walk what is beyond one grid in steps of it.
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

}  // namespace d2proj
