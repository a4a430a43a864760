// Rotated RoIAlign's forward pass on the CPU: roi_align's driver over another plan.
#include "roi_align/roi_align_forward.h"
#include "roi_align_rotated/roi_align_rotated_args.h"
#include "roi_align_rotated/roi_align_rotated_plan.h"

namespace d2proj {
namespace roi_align_rotated {

// As roi_align's functions of these names.
template <typename A, int kVectors>
D2_INLINE void pool_box(A* out, int64_t out_step, const A* map, const int64_t* rows, int64_t step,
                        const RotatedTaps<A>& box, const Options& o) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  for (int64_t b = 0; b < o.pooled_h * o.pooled_w; ++b) {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V{};
    for (int64_t i = box.begin[b]; i < box.begin[b + 1]; ++i) {
      const A* pixel = map + rows[box.taps[i].y] + box.taps[i].x * step;
      for (int v = 0; v < kVectors; ++v) {
        V value;
        simd::load(value, pixel + v * kLanes);
        sum[v] += box.taps[i].weight * value;
      }
    }
    for (int v = 0; v < kVectors; ++v) simd::store(out + b * out_step + v * kLanes, sum[v]);
  }
}

// kChannels planes at a time: their sums do not wait for each other.
template <int kChannels, typename T, typename A>
D2_INLINE void pool_planes(const Map<T>& out, const Map<const T>& map, int64_t c0, const RotatedTaps<A>& box,
                           const Options& o) {
  const T* planes = map.data + c0 * map.c;
  for (int64_t b = 0; b < o.pooled_h * o.pooled_w; ++b) {
    A sum[kChannels] = {};
    for (int64_t i = box.begin[b]; i < box.begin[b + 1]; ++i) {
      const T* pixel = planes + box.taps[i].y * map.h + box.taps[i].x * map.w;
      for (int c = 0; c < kChannels; ++c) sum[c] += box.taps[i].weight * static_cast<A>(pixel[c * map.c]);
    }
    T* to = out.data + c0 * out.c + b / o.pooled_w * out.h + b % o.pooled_w * out.w;
    for (int c = 0; c < kChannels; ++c) to[c * out.c] = static_cast<T>(sum[c]);
  }
}

template <typename T, typename A>
D2_INLINE void pool_box_direct(Map<T> out, Map<const T> map, int64_t channels, const RotatedTaps<A>& box,
                               const Options& o) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) pool_planes<4>(out, map, c, box, o);
  for (; c < channels; ++c) pool_planes<1>(out, map, c, box, o);
}

template <typename T, typename A>
D2_INLINE void pool_box_last(Map<T> out, Map<const T> map, int64_t channels, const RotatedTaps<A>& box,
                             const Options& o) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  for (int64_t b = 0; b < o.pooled_h * o.pooled_w; ++b) {
    for (int64_t c0 = 0; c0 < channels; c0 += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c0);
      A sum[kLanes] = {};
      for (int64_t i = box.begin[b]; i < box.begin[b + 1]; ++i) {
        const A weight = box.taps[i].weight;
        const T* pixel = map.data + c0 + box.taps[i].y * map.h + box.taps[i].x * map.w;
        for (int64_t c = 0; c < lanes; ++c) sum[c] += weight * static_cast<A>(pixel[c]);
      }
      T* to = out.data + c0 * out.c + b / o.pooled_w * out.h + b % o.pooled_w * out.w;
      for (int64_t c = 0; c < lanes; ++c) to[c * out.c] = static_cast<T>(sum[c]);
    }
  }
}

namespace {

Tensor forward_cpu(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width, int64_t sampling_ratio) {
  constexpr const char* kOp = "roi_align_rotated";
  check_forward(kOp, input, rois, pooled_height, pooled_width);
  const std::vector<Options> levels{
      {pooled_height, pooled_width, input.size(2), input.size(3), spatial_scale, sampling_ratio, true}};
  Tensor out = empty_4d(input, rois.size(0), input.size(1), pooled_height, pooled_width, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  advise_huge_pages(out);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    using P = RotatedPlan<A>;
    const Tensor dense = boxes_as<A>(rois);
    const A* data = static_cast<const A*>(dense.const_data_ptr());
    const auto images = group_by_image(kOp, data, dense.size(0), input.size(0), 6);
    for (const auto& [first, last] : rounds_of(data, dense.size(0), levels[0])) {
      const P plan(data, first, last, levels[0]);
      roi_align::forward<T, A, P>(
          {{read_map<T>(input)}, write_map<T>(out), input.size(1), plan, levels, 1, false, nullptr},
          groups_of_round(images, first, last));
    }
  });
  return out;
}

}  // namespace
}  // namespace roi_align_rotated
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&d2proj::roi_align_rotated::forward_cpu));
}
