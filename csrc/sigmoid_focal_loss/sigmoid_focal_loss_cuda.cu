// The focal loss on CUDA: element by element, 16 bytes a thread. Sums are taken in tiles of fixed size and then in a
// fixed order by one block, in float64: no atomics, the same bits every time, no copy to the host.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/cuda.h"
#include "common/scratch.cuh"
#include "sigmoid_focal_loss/sigmoid_focal_loss_args.h"

namespace d2proj {
namespace sigmoid_focal_loss {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 8;  // vectors of a thread

struct DeviceMath {
  template <typename A>
  static __device__ __forceinline__ A exp_negative(A x) {
    return exp(x);
  }
  template <typename A>
  static __device__ __forceinline__ A log1p_unit(A e) {
    return log1p(e);
  }
  template <typename A>
  static __device__ __forceinline__ A power(A base, A exponent) {
    return pow(base, exponent);
  }
};

template <typename T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T lane[kVec];
};

template <typename T, typename A>
struct Problem {
  const T* inputs;
  const T* targets;        // a value for each logit, or null and
  const int64_t* classes;  // the class of each row of
  int64_t columns;         // logits
  const T* grad;           // backward: one for each logit, or, with a reduction, one
  A scale;                 // backward, with a reduction: what the one is multiplied by
  bool reduced;
  Focus<A> focus;
  int64_t total;
};

// The target of a logit, and whether it counts.
template <typename T, typename A>
__device__ __forceinline__ bool target_of(const Problem<T, A>& p, int64_t i, A& target) {
  const int64_t row = i / p.columns, kind = p.classes[row];
  target = kind == i - row * p.columns ? A(1) : A(0);
  return kind >= 0;
}

// kVec losses or gradients from element `at` on.
template <bool kBackward, int kGamma, int kVec, typename T, typename A>
__device__ __forceinline__ void values_at(const Problem<T, A>& p, int64_t at, A (&value)[kVec]) {
  using Lanes = Pack<T, kVec>;
  const Lanes x = *reinterpret_cast<const Lanes*>(p.inputs + at);
  Lanes t{}, g{};
  if (!p.classes) t = *reinterpret_cast<const Lanes*>(p.targets + at);
  if (kBackward && !p.reduced) g = *reinterpret_cast<const Lanes*>(p.grad + at);
  const A scale = kBackward && p.reduced ? static_cast<A>(*p.grad) * p.scale : A(1);
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    A target = static_cast<A>(t.lane[v]);
    const bool counts = !p.classes || target_of(p, at + v, target);
    const A logit = static_cast<A>(x.lane[v]);
    if constexpr (kBackward) {
      value[v] =
          gradient_of<kGamma, DeviceMath>(logit, target, p.focus) * (p.reduced ? scale : static_cast<A>(g.lane[v]));
    } else {
      value[v] = loss_of<kGamma, DeviceMath>(logit, target, p.focus);
    }
    if (!counts) value[v] = A(0);
  }
}

template <bool kBackward, int kGamma, int kVec, typename T, typename A>
__global__ void __launch_bounds__(kThreads) element_kernel(Problem<T, A> p, T* __restrict__ out) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  if (at >= p.total) return;
  A value[kVec];
  values_at<kBackward, kGamma>(p, at, value);
  Pack<T, kVec> result;
#pragma unroll
  for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(value[v]);
  *reinterpret_cast<Pack<T, kVec>*>(out + at) = result;
}

// The sum over a block's threads, valid in the first.
__device__ __forceinline__ double block_sum(double sum) {
  __shared__ double warps[kThreads / 32];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  if (threadIdx.x == 0) {
    for (const double warp : warps) sum += warp;
  }
  return sum;
}

template <int kGamma, int kVec, typename T, typename A>
__global__ void __launch_bounds__(kThreads) sum_kernel(Problem<T, A> p, double* __restrict__ sums) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kTile;
  A sum = A(0);
  for (int k = 0; k < kTile; ++k) {
    const int64_t at = (first + k * kThreads + threadIdx.x) * kVec;
    if (at >= p.total) break;
    A value[kVec];
    values_at<false, kGamma>(p, at, value);
#pragma unroll
    for (int v = 0; v < kVec; ++v) sum += value[v];
  }
  const double total = block_sum(static_cast<double>(sum));
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const double* __restrict__ sums, int64_t count, double divisor, T* __restrict__ out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<T>(static_cast<A>(sum / divisor));
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls `body(std::integral_constant<int, kVec>{})` with the elements of 16 bytes where the logits split into them.
template <typename T, typename A, typename Body>
void with_vector(const Problem<T, A>& p, const void* out, const Body& body) {
  constexpr int kWide = 16 / sizeof(T);
  const bool wide =
      p.total % kWide == 0 && aligned(p.inputs) && aligned(p.targets) && aligned(out) && (p.reduced || aligned(p.grad));
  if (wide) return body(std::integral_constant<int, kWide>{});
  body(std::integral_constant<int, 1>{});
}

unsigned blocks(const char* op, int64_t count, int64_t each) {
  const int64_t needed = (count + each - 1) / each;
  check(needed <= std::numeric_limits<int32_t>::max(), op, "inputs has too many elements: ", count);
  return static_cast<unsigned>(needed);
}

template <typename T, typename A>
Problem<T, A> problem_of(const Tensor& inputs, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  Problem<T, A> p{};
  p.inputs = static_cast<const T*>(inputs.const_data_ptr());
  p.columns = 1;
  if (are_classes(targets)) {
    p.classes = static_cast<const int64_t*>(targets.const_data_ptr());
    p.columns = inputs.size(inputs.dim() - 1);
  } else {
    p.targets = static_cast<const T*>(targets.const_data_ptr());
  }
  p.focus = Focus<A>::make(alpha, gamma);
  p.total = inputs.numel();
  p.reduced = reduction != kNone;
  p.scale = reduction == kMean ? A(1) / static_cast<A>(p.total) : A(1);
  return p;
}

Tensor forward_cuda(const Tensor& inputs, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  constexpr const char* kOp = "sigmoid_focal_loss";
  check_forward(kOp, inputs, targets, gamma, reduction);
  const CudaDevice device(inputs);
  const bool last = keep_channels_last(inputs, targets);
  const Tensor x = dense(inputs, last), t = dense(targets, last);
  Tensor out = reduction == kNone ? empty_like(inputs, last) : torch::stable::new_empty(inputs, {});
  if (reduction == kNone && out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(inputs);
  dispatch_floating(inputs.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Problem<T, A> p = problem_of<T, A>(x, t, alpha, gamma, reduction);
    T* to = static_cast<T*>(out.mutable_data_ptr());
    with_gamma(gamma, [&](auto small) {
      constexpr int kGamma = decltype(small)::value;
      with_vector(p, reduction == kNone ? to : nullptr, [&](auto width) {
        constexpr int kVec = decltype(width)::value;
        if (reduction == kNone) {
          element_kernel<false, kGamma, kVec>
              <<<blocks(kOp, p.total, int64_t(kThreads) * kVec), kThreads, 0, stream>>>(p, to);
          return;
        }
        const int64_t count = blocks(kOp, p.total, int64_t(kThreads) * kTile * kVec);
        const Scratch<double> sums(inputs, std::max<int64_t>(count, 1));
        if (count > 0) {
          sum_kernel<kGamma, kVec><<<static_cast<unsigned>(count), kThreads, 0, stream>>>(p, sums.get());
        }
        const double divisor = reduction == kMean ? static_cast<double>(p.total) : 1.0;
        finish_kernel<T, A><<<1, kThreads, 0, stream>>>(sums.get(), count, divisor, to);
      });
    });
  });
  check_cuda(kOp, cudaGetLastError());
  return out;
}

Tensor backward_cuda(const Tensor& grad, const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                     int64_t reduction) {
  constexpr const char* kOp = "_sigmoid_focal_loss_backward";
  check_backward(kOp, grad, inputs, targets, gamma, reduction);
  const CudaDevice device(inputs);
  const bool last = keep_channels_last(inputs, targets);
  Tensor out = empty_like(inputs, last);
  if (out.numel() == 0) return out;
  const Tensor x = dense(inputs, last), t = dense(targets, last);
  const Tensor g = reduction == kNone ? dense(grad, last) : grad;
  const cudaStream_t stream = current_stream(inputs);
  dispatch_floating(inputs.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    Problem<T, A> p = problem_of<T, A>(x, t, alpha, gamma, reduction);
    p.grad = static_cast<const T*>(g.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    with_gamma(gamma, [&](auto small) {
      constexpr int kGamma = decltype(small)::value;
      with_vector(p, to, [&](auto width) {
        constexpr int kVec = decltype(width)::value;
        element_kernel<true, kGamma, kVec>
            <<<blocks(kOp, p.total, int64_t(kThreads) * kVec), kThreads, 0, stream>>>(p, to);
      });
    });
  });
  check_cuda(kOp, cudaGetLastError());
  return out;
}

}  // namespace
}  // namespace sigmoid_focal_loss
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&d2proj::sigmoid_focal_loss::forward_cuda));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&d2proj::sigmoid_focal_loss::backward_cuda));
}
