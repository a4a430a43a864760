// The element-wise losses of the IoU family on the CPU: one pass over the boxes forward, one backward.
#include <algorithm>
#include <tuple>
#include <vector>

#include "box_iou/box_iou_args.h"
#include "box_iou/box_iou_lanes.h"
#include "common/map.h"

namespace d2proj {
namespace iou {
namespace {

// Pairs that one task takes; sums are formed per task, so that they do not depend on the number of threads.
constexpr int64_t kBlock = 2048;

template <typename T>
struct LossOptions {
  T eps;
  bool log;
};

// `losses` is null where only the sum is wanted.
template <Kind K>
struct LossForward {
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* boxes1, const T* boxes2, int64_t count, const LossOptions<T>& options, T* losses,
                            T* sum) {
    using Lane = Lanes<L, T>;
    using V = typename Lane::V;
    V total{};
    for (int64_t i = 0; i < count; i += Lane::kCount) {
      const int64_t some = count - i;
      Numbers<V> numbers;
      Fields<V> a, b;
      Lane::load_some_boxes(boxes1 + 4 * i, some, numbers);
      make_fields<K, V>(numbers, Format::kCorners, a);
      Lane::load_some_boxes(boxes2 + 4 * i, some, numbers);
      make_fields<K, V>(numbers, Format::kCorners, b);
      Pair<K, true, V> pair;
      pair.measure(a, b, options.eps);
      V loss = pair.distance();
      if (K == Kind::kIou && options.log) {
        for (int64_t lane = 0; lane < Lane::kCount; ++lane) {
          loss[lane] = -std::log(pair.iou[lane] < options.eps ? options.eps : pair.iou[lane]);
        }
      }
      if (losses) {
        Lane::store_some(losses + i, some, loss);
      } else if (some >= Lane::kCount) {
        total += loss;
      } else {
        for (int64_t lane = 0; lane < some; ++lane) total[lane] += loss[lane];
      }
    }
    *sum = Lane::sum(total);
  }
};

// `step` is 0 where one gradient stands for all pairs. A null output is not wanted.
template <Kind K>
struct LossBackward {
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* grad, int64_t step, T scale, const T* boxes1, const T* boxes2, int64_t count,
                            const LossOptions<T>& options, T* grad1, T* grad2) {
    using Lane = Lanes<L, T>;
    using V = typename Lane::V;
    for (int64_t i = 0; i < count; i += Lane::kCount) {
      const int64_t some = count - i;
      Numbers<V> numbers1, numbers2, out;
      Fields<V> a, b, to_a, to_b;
      Lane::load_some_boxes(boxes1 + 4 * i, some, numbers1);
      make_fields<K, V>(numbers1, Format::kCorners, a);
      Lane::load_some_boxes(boxes2 + 4 * i, some, numbers2);
      make_fields<K, V>(numbers2, Format::kCorners, b);
      V g{};
      if (step) {
        Lane::load_some(grad + i, some, g);
      } else {
        g += *grad * scale;
      }
      Pair<K, true, V> pair;
      pair.measure(a, b, options.eps);
      V to_similarity = -g;
      if (K == Kind::kIou && options.log) {
        const V zero{};
        to_similarity = pair.iou < options.eps ? zero : to_similarity / pair.iou;
      }
      pair.differentiate(a, b, to_similarity, to_a, to_b);
      if (grad1) {
        gradient_of_numbers<K, V>(numbers1, Format::kCorners, to_a, out);
        Lane::store_some_boxes(grad1 + 4 * i, some, out);
      }
      if (grad2) {
        gradient_of_numbers<K, V>(numbers2, Format::kCorners, to_b, out);
        Lane::store_some_boxes(grad2 + 4 * i, some, out);
      }
    }
  }
};

// Calls `body(begin, end)` for each block of pairs, on the calling thread where there is one block.
template <typename Body>
void for_blocks(int64_t count, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block * kBlock, std::min(count, (block + 1) * kBlock));
  };
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  if (blocks < 2) return range(0, blocks);
  torch::stable::parallel_for(0, blocks, 4, range);
}

Tensor loss_cpu(const Tensor& boxes1, const Tensor& boxes2, int64_t kind, bool log, int64_t reduction, double eps) {
  const int64_t count = check_loss(loss_name(kind), boxes1, boxes2, reduction);
  Tensor out = reduction == 0 ? empty_after(boxes1, 1, {}) : torch::stable::new_empty(boxes1, {});
  advise_huge_pages(out);
  const Tensor dense1 = torch::stable::contiguous(boxes1), dense2 = torch::stable::contiguous(boxes2);
  with_box_type(boxes1, [&](auto tag) {
    using T = decltype(tag);
    const T *from1 = static_cast<const T*>(dense1.const_data_ptr()),
            *from2 = static_cast<const T*>(dense2.const_data_ptr());
    T* const to = static_cast<T*>(out.mutable_data_ptr());
    const LossOptions<T> options{static_cast<T>(eps), log};
    std::vector<T> sums((count + kBlock - 1) / kBlock);
    with_kind(kind, [&](auto constant) {
      for_blocks(count, [&](int64_t begin, int64_t end) {
        simd::dispatch<LossForward<decltype(constant)::value>>(from1 + 4 * begin, from2 + 4 * begin, end - begin,
                                                               options, reduction ? nullptr : to + begin,
                                                               &sums[begin / kBlock]);
      });
    });
    if (reduction) {
      double total = 0;
      for (const T sum : sums) total += sum;
      *to = static_cast<T>(reduction == 1 && count ? total / static_cast<double>(count) : total);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> loss_backward_cpu(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                             int64_t kind, bool log, int64_t reduction, double eps, bool want1,
                                             bool want2) {
  const char* const op = loss_name(kind);
  const int64_t count = check_loss(op, boxes1, boxes2, reduction);
  check_grad(op, grad, boxes1);
  check(grad.numel() == (reduction ? 1 : count), op, "grad must have the shape of the loss, got ", shape_of(grad));
  Tensor grad1 = want1 ? empty_after(boxes1, 0, {}) : torch::stable::new_empty(boxes1, {0});
  Tensor grad2 = want2 ? empty_after(boxes2, 0, {}) : torch::stable::new_empty(boxes2, {0});
  advise_huge_pages(grad1);
  advise_huge_pages(grad2);
  const Tensor dense = torch::stable::contiguous(grad);
  const Tensor dense1 = torch::stable::contiguous(boxes1), dense2 = torch::stable::contiguous(boxes2);
  with_box_type(boxes1, [&](auto tag) {
    using T = decltype(tag);
    const T* const from = static_cast<const T*>(dense.const_data_ptr());
    const T *from1 = static_cast<const T*>(dense1.const_data_ptr()),
            *from2 = static_cast<const T*>(dense2.const_data_ptr());
    T* const to1 = want1 ? static_cast<T*>(grad1.mutable_data_ptr()) : nullptr;
    T* const to2 = want2 ? static_cast<T*>(grad2.mutable_data_ptr()) : nullptr;
    const LossOptions<T> options{static_cast<T>(eps), log};
    const int64_t step = reduction ? 0 : 1;
    const T scale = reduction == 1 && count ? T(1) / static_cast<T>(count) : T(1);
    with_kind(kind, [&](auto constant) {
      for_blocks(count, [&](int64_t begin, int64_t end) {
        simd::dispatch<LossBackward<decltype(constant)::value>>(
            from + step * begin, step, scale, from1 + 4 * begin, from2 + 4 * begin, end - begin, options,
            to1 ? to1 + 4 * begin : nullptr, to2 ? to2 + 4 * begin : nullptr);
      });
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace iou
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("box_iou_loss", TORCH_BOX(&d2proj::iou::loss_cpu));
  m.impl("_box_iou_loss_backward", TORCH_BOX(&d2proj::iou::loss_backward_cpu));
}
