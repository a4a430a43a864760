// Rotated RoIAlign's backward pass on the CPU: roi_align's driver over another plan.
#include "roi_align/roi_align_backward.h"
#include "roi_align_rotated/roi_align_rotated_args.h"
#include "roi_align_rotated/roi_align_rotated_plan.h"

namespace d2proj {
namespace roi_align_rotated {

// As roi_align's functions of these names.
template <typename A, int kVectors>
D2_INLINE void spread_box(A* map, const int64_t* rows, int64_t step, int64_t begin, int64_t end, const A* grad,
                          int64_t grad_step, const RotatedTaps<A>& box, const Options& o) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  for (int64_t b = 0; b < o.pooled_h * o.pooled_w; ++b) {
    V share[kVectors];
    for (int v = 0; v < kVectors; ++v) simd::load(share[v], grad + b * grad_step + v * kLanes);
    for (int64_t i = box.begin[b]; i < box.begin[b + 1]; ++i) {
      const RotatedTap<A>& tap = box.taps[i];
      if (tap.y < begin || tap.y >= end) continue;
      A* at = map + rows[tap.y] + tap.x * step;
      for (int v = 0; v < kVectors; ++v) {
        V pixel;
        simd::load(pixel, at + v * kLanes);
        pixel += tap.weight * share[v];
        simd::store(at + v * kLanes, pixel);
      }
    }
  }
}

template <typename A>
D2_INLINE void spread_box_direct(Map<A> map, Map<const A> grad, int64_t channels, int64_t begin, int64_t end,
                                 const RotatedTaps<A>& box, const Options& o) {
  for (int64_t c = 0; c < channels; ++c) {
    A* plane = map.data + c * map.c;
    for (int64_t b = 0; b < o.pooled_h * o.pooled_w; ++b) {
      const A share = grad.data[c * grad.c + b / o.pooled_w * grad.h + b % o.pooled_w * grad.w];
      for (int64_t i = box.begin[b]; i < box.begin[b + 1]; ++i) {
        const RotatedTap<A>& tap = box.taps[i];
        if (tap.y >= begin && tap.y < end) plane[tap.y * map.h + tap.x * map.w] += tap.weight * share;
      }
    }
  }
}

namespace {

Tensor backward_cpu(const Tensor& grad, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                    int64_t sampling_ratio, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_roi_align_rotated_backward";
  check_backward(kOp, grad, rois, channels, pooled_height, pooled_width);
  const std::vector<Options> levels{{pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio, true}};
  Tensor out = empty_4d(grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    using P = RotatedPlan<A>;
    const Tensor dense = boxes_as<A>(rois);
    const A* data = static_cast<const A*>(dense.const_data_ptr());
    const auto images = group_by_image(kOp, data, dense.size(0), batch_size, 6);
    const auto rounds = rounds_of(data, dense.size(0), levels[0]);
    if (!std::is_same_v<T, A> && rounds.size() > 1) {  // or every round would round to half
      const Tensor wide =
          backward_cpu(torch::stable::to(grad, ScalarType::Float), rois, spatial_scale, pooled_height, pooled_width,
                       batch_size, channels, height, width, sampling_ratio, channels_last, true);
      torch::stable::copy_(out, wide);
      return;
    }
    for (const auto& [first, last] : rounds) {
      const P plan(data, first, last, levels[0]);
      roi_align::backward<T, A, P>({read_map<T>(grad), {write_map<T>(out)}, plan, levels, 1, {}, first > 0},
                                   groups_of_round(images, first, last), channels);
    }
  });
  return out;
}

}  // namespace
}  // namespace roi_align_rotated
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&d2proj::roi_align_rotated::backward_cpu));
}
