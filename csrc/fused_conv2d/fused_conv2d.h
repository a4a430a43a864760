// Convolution, bias, activation and the sum with another map in one pass: the parts that work on 64 bytes of channels.
//
// Activations are darknet's (leaky, relu6, logistic, swish, mish); the transforms are Winograd's minimal filtering
// F(4 x 4, 3 x 3) with the points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, Fast Algorithms for Convolutional
// Neural Networks, 2016, section 4.3).
#pragma once

#include <algorithm>

#include "common/simd_math.h"
#include "common/tensor.h"

namespace d2proj {
namespace fused_conv2d {

using simd::Level;
constexpr int64_t kLanes = simd::Wide<float>::kLanes;
using Lanes = simd::Wide<float>::type;

enum class Activation : int64_t { kLinear, kLeaky, kRelu6, kLogistic, kSwish, kMish };
constexpr int64_t kActivations = 6;

template <typename Function>
D2_INLINE void each_lane(Lanes& x, const Function& function) {
  float lanes[kLanes];
  simd::store(lanes, x);
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = function(lanes[i]);
  simd::load(x, lanes);
}

// `slope` is the leaky one's; 0 makes it ReLU.
template <Activation kKind>
D2_INLINE void activate(Lanes& x, float slope) {
  if constexpr (kKind == Activation::kLeaky) {
    // As a choice between vectors: g++ gives a loop of such choices between numbers up.
    const Lanes scaled = x * slope;
    x = x > 0.0f ? x : scaled;
  } else if constexpr (kKind == Activation::kRelu6) {
    each_lane(x, [](float v) {
      const float above = v < 0.0f ? 0.0f : v;
      return above > 6.0f ? 6.0f : above;
    });
  } else if constexpr (kKind == Activation::kLogistic) {
    // This and the rest in w = e^-|x|, which cannot overflow.
    each_lane(x, [](float v) {
      const float w = simd::exp_negative(-__builtin_fabsf(v));
      return (v < 0.0f ? w : 1.0f) / (1.0f + w);
    });
  } else if constexpr (kKind == Activation::kSwish) {
    each_lane(x, [](float v) {
      const float w = simd::exp_negative(-__builtin_fabsf(v));
      return v * (v < 0.0f ? w : 1.0f) / (1.0f + w);
    });
  } else if constexpr (kKind == Activation::kMish) {
    // tanh(log(1 + e^x)) = n / (n + 2) with n = e^2x + 2 e^x; for x > 0 both sides times e^-2x.
    each_lane(x, [](float v) {
      const float w = simd::exp_negative(-__builtin_fabsf(v));
      const float low = w * (w + 2.0f), high = 1.0f + 2.0f * w, rest = 2.0f * w * w;
      const float n = v < 0.0f ? low : high;
      return v * n / (n + (v < 0.0f ? 2.0f : rest));
    });
  }
}

// simd::dispatch of `Body<activation>`.
template <template <Activation> class Body, typename... Args>
void dispatch(Activation activation, const Args&... args) {
  switch (activation) {
    case Activation::kLinear:
      return simd::dispatch<Body<Activation::kLinear>>(args...);
    case Activation::kLeaky:
      return simd::dispatch<Body<Activation::kLeaky>>(args...);
    case Activation::kRelu6:
      return simd::dispatch<Body<Activation::kRelu6>>(args...);
    case Activation::kLogistic:
      return simd::dispatch<Body<Activation::kLogistic>>(args...);
    case Activation::kSwish:
      return simd::dispatch<Body<Activation::kSwish>>(args...);
    case Activation::kMish:
      return simd::dispatch<Body<Activation::kMish>>(args...);
  }
}

// `count` channels from and to memory; those of the register beyond are zeros.
template <Level L>
D2_INLINE void load_channels(Lanes& x, const float* from, int64_t count) {
  if (count >= kLanes) return simd::load(x, from);
  float lanes[kLanes] = {};
  std::copy_n(from, count, lanes);
  simd::load(x, lanes);
}
template <Level L>
D2_INLINE void store_channels(float* to, const Lanes& x, int64_t count) {
  if (count >= kLanes) return simd::store(to, x);
  float lanes[kLanes];
  simd::store(lanes, x);
  std::copy_n(lanes, count, to);
}

// The rows of B^T times a column of six values, and of A^T (four rows).
D2_INLINE void transform_input(Lanes (&x)[6]) {
  const Lanes even = x[4] - 4.0f * x[2], odd = x[3] - 4.0f * x[1];
  const Lanes even2 = x[4] - x[2], odd2 = 2.0f * (x[3] - x[1]);
  const Lanes first = 4.0f * (x[0] - x[2]) + even2, last = 4.0f * (x[1] - x[3]) + (x[5] - x[3]);
  x[0] = first;
  x[1] = even + odd;
  x[2] = even - odd;
  x[3] = even2 + odd2;
  x[4] = even2 - odd2;
  x[5] = last;
}
D2_INLINE void transform_output(Lanes (&x)[6]) {
  const Lanes sum = x[1] + x[2], difference = x[1] - x[2];
  const Lanes sum2 = x[3] + x[4], difference2 = x[3] - x[4];
  x[0] += sum + sum2;
  x[1] = difference + 2.0f * difference2;
  x[2] = sum + 4.0f * sum2;
  x[3] = difference + 8.0f * difference2 + x[5];
}

}  // namespace fused_conv2d
}  // namespace d2proj
