// The focal loss on the CPU, forward and backward: one pass over the logits, a tile of them at a time, in loops that
// vectorise. Sums are taken in tiles of fixed size, so their bits do not depend on the number of threads.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/map.h"
#include "common/simd.h"
#include "common/simd_math.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_args.h"

namespace d2proj {
namespace sigmoid_focal_loss {
namespace {

using simd::Level;

constexpr int64_t kTile = 1024;        // elements worked on at a time: they stay in the first-level cache
constexpr int64_t kTask = 16 * kTile;  // elements that are summed by one thread
constexpr int64_t kLanes = 16;         // partial sums of a tile

struct VectorMath {
  template <typename A>
  static D2_INLINE A exp_negative(A x) {
    return simd::exp_negative(x);
  }
  template <typename A>
  static D2_INLINE A log1p_unit(A e) {
    return simd::log1p_unit(e);
  }
  template <typename A>
  static D2_INLINE A power(A base, A exponent) {
    return simd::exp_negative(exponent * simd::log_positive(base));
  }
};

template <typename T, typename A>
struct Problem {
  const T* inputs;
  const T* targets;        // a value for each logit, or null and
  const int64_t* classes;  // the class of each row of
  int64_t columns;         // logits
  const T* grad;           // backward, without reduction
  A scale;                 // backward, with it
  Focus<A> focus;
  T* out;        // the loss without reduction, or the gradient
  double* sums;  // the loss with it, one number for each task
};

// `count` elements as accumulators: where they lie, if that is what they are, else in `buf`.
template <Level L, typename T, typename A>
D2_INLINE const A* widen(const T* from, A* buf, int64_t count) {
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      simd::Float8 value;
      simd::load8<L>(value, from + i);
      simd::store8<L>(buf + i, value);
    }
    for (; i < count; ++i) buf[i] = static_cast<A>(from[i]);
    return buf;
  }
}

template <Level L, typename T, typename A>
D2_INLINE void narrow(T* to, const A* from, int64_t count) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<T, A>) {
    for (; i + 8 <= count; i += 8) {
      simd::Float8 value;
      simd::load8<L>(value, from + i);
      simd::store8<L>(to + i, value);
    }
  }
  for (; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

// A tile's losses or gradients.
template <bool kBackward, int kGamma, typename A>
D2_INLINE A value_of(A x, A t, const Focus<A>& focus) {
  if constexpr (kBackward) return gradient_of<kGamma, VectorMath>(x, t, focus);
  return loss_of<kGamma, VectorMath>(x, t, focus);
}

// The rows [begin, end) of a tile have been taken for negatives: corrects their positives and blanks ignored ones.
template <bool kBackward, int kGamma, typename T, typename A>
D2_INLINE void place_classes(const Problem<T, A>& p, int64_t begin, int64_t end, A* value) {
  for (int64_t row = begin / p.columns; row * p.columns < end; ++row) {
    const int64_t kind = p.classes[row], first = row * p.columns;
    if (kind < 0) {
      const int64_t from = std::max(begin, first), to = std::min(end, first + p.columns);
      std::fill(value + (from - begin), value + (to - begin), A(0));
    } else if (kind < p.columns && first + kind >= begin && first + kind < end) {
      const A x = static_cast<A>(p.inputs[first + kind]);
      value[first + kind - begin] = value_of<kBackward, kGamma>(x, A(1), p.focus);
    }
  }
}

template <bool kBackward, int kGamma>
struct Tiles {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Problem<T, A>& p, int64_t begin, int64_t end) {
    alignas(64) A value[kTile], x_buf[kTile], t_buf[kTile];
    const Focus<A> focus = p.focus;
    double sum = 0;
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t count = std::min(kTile, end - at);
      const A* D2_RESTRICT x = widen<L>(p.inputs + at, x_buf, count);
      if (p.classes) {
        for (int64_t i = 0; i < count; ++i) value[i] = value_of<kBackward, kGamma>(x[i], A(0), focus);
        place_classes<kBackward, kGamma>(p, at, at + count, value);
      } else {
        const A* D2_RESTRICT t = widen<L>(p.targets + at, t_buf, count);
        for (int64_t i = 0; i < count; ++i) value[i] = value_of<kBackward, kGamma>(x[i], t[i], focus);
      }
      if constexpr (kBackward) {
        if (p.grad) {
          const A* D2_RESTRICT g = widen<L>(p.grad + at, t_buf, count);
          for (int64_t i = 0; i < count; ++i) value[i] *= g[i];
        } else {
          for (int64_t i = 0; i < count; ++i) value[i] *= p.scale;
        }
      }
      if (p.out) {
        narrow<L>(p.out + at, value, count);
      } else {
        const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
        std::fill(value + count, value + whole, A(0));
        A lanes[kLanes] = {};
        for (int64_t i = 0; i < whole; i += kLanes) {
          for (int64_t l = 0; l < kLanes; ++l) lanes[l] += value[i + l];
        }
        for (const A lane : lanes) sum += static_cast<double>(lane);
      }
    }
    if (p.sums) p.sums[begin / kTask] = sum;
  }
};

template <bool kBackward, typename T, typename A>
void work(const Problem<T, A>& p, int64_t total, double gamma) {
  with_gamma(gamma, [&](auto small) {
    constexpr int kGamma = decltype(small)::value;
    torch::stable::parallel_for(0, (total + kTask - 1) / kTask, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        simd::dispatch<Tiles<kBackward, kGamma>>(p, i * kTask, std::min(total, (i + 1) * kTask));
      }
    });
  });
}

template <typename T, typename A>
Problem<T, A> problem_of(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  Problem<T, A> p{};
  p.inputs = static_cast<const T*>(inputs.const_data_ptr());
  if (are_classes(targets)) {
    p.classes = static_cast<const int64_t*>(targets.const_data_ptr());
    p.columns = inputs.size(inputs.dim() - 1);
  } else {
    p.targets = static_cast<const T*>(targets.const_data_ptr());
  }
  p.focus = Focus<A>::make(alpha, gamma);
  return p;
}

// Halves, quarters and so on: the error grows with the logarithm of the count.
double pairwise_sum(const double* values, int64_t count) {
  if (count <= 8) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  const int64_t half = count / 2;
  return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

Tensor forward_cpu(const Tensor& inputs, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check_forward("sigmoid_focal_loss", inputs, targets, gamma, reduction);
  const bool last = keep_channels_last(inputs, targets);
  const Tensor x = dense(inputs, last), t = dense(targets, last);
  const int64_t total = inputs.numel();
  Tensor out = reduction == kNone ? empty_like(inputs, last) : torch::stable::new_empty(inputs, {});
  if (reduction == kNone && total == 0) return out;
  if (reduction == kNone) advise_huge_pages(out);
  dispatch_floating(inputs.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    Problem<T, A> p = problem_of<T, A>(x, t, alpha, gamma);
    T* to = static_cast<T*>(out.mutable_data_ptr());
    if (reduction == kNone) {
      p.out = to;
      work<false>(p, total, gamma);
      return;
    }
    std::vector<double> sums((total + kTask - 1) / kTask);
    p.sums = sums.data();
    work<false>(p, total, gamma);
    const double sum = pairwise_sum(sums.data(), sums.size());
    *to = static_cast<T>(static_cast<A>(reduction == kMean ? sum / static_cast<double>(total) : sum));
  });
  return out;
}

Tensor backward_cpu(const Tensor& grad, const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                    int64_t reduction) {
  check_backward("_sigmoid_focal_loss_backward", grad, inputs, targets, gamma, reduction);
  const bool last = keep_channels_last(inputs, targets);
  const int64_t total = inputs.numel();
  Tensor out = empty_like(inputs, last);
  if (total == 0) return out;
  advise_huge_pages(out);
  const Tensor x = dense(inputs, last), t = dense(targets, last);
  const Tensor g = reduction == kNone ? dense(grad, last) : grad;
  dispatch_floating(inputs.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    Problem<T, A> p = problem_of<T, A>(x, t, alpha, gamma);
    p.out = static_cast<T*>(out.mutable_data_ptr());
    const T* from = static_cast<const T*>(g.const_data_ptr());
    if (reduction == kNone) {
      p.grad = from;
    } else {
      p.scale = static_cast<A>(*from) / (reduction == kMean ? static_cast<A>(total) : A(1));
    }
    work<true>(p, total, gamma);
  });
  return out;
}

}  // namespace
}  // namespace sigmoid_focal_loss
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&d2proj::sigmoid_focal_loss::forward_cpu));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&d2proj::sigmoid_focal_loss::backward_cpu));
}
