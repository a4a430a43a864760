// roi_align's backward pass on the CPU, and that of every op that pools upright boxes.
#include "roi_align/roi_align_backward.h"

namespace d2proj {
namespace roi_align {

void spread_levels(const Pooling& p, const Tensor& grad, const Tensor* winner, std::vector<Tensor>& outs) {
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor boxes = boxes_as<A>(p.boxes);
    const A* data = static_cast<const A*>(boxes.const_data_ptr());
    const int64_t levels = p.levels.size(), per_row = views_per_row(p.reduce, levels);
    std::vector<View> views;
    std::vector<Group> groups;
    lay_out_views(p, data, views, groups);
    for (int64_t l = 1; l < per_row; ++l) {  // of each level, all rows
      for (int64_t n = 0; n < p.images; ++n) groups.push_back({n, l, groups[n].rows});
    }
    const Plan<A> plan(data, views, p.levels);
    std::vector<Map<T>> maps;
    for (Tensor& out : outs) maps.push_back(write_map<T>(out));
    const auto winners = winner ? read_map<signed char>(*winner) : Map<const signed char>{};
    backward<T, A, Plan<A>>({read_map<T>(grad), maps, plan, p.levels, per_row, winners, false}, groups, grad.size(1));
  });
}

namespace {

Tensor backward_cpu(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                    int64_t sampling_ratio, bool aligned, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_roi_align_backward";
  check_backward(kOp, grad, boxes, channels, pooled_height, pooled_width);
  const Options o{pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio, aligned};
  std::vector<Tensor> outs{empty_4d(grad, batch_size, channels, height, width, channels_last)};
  if (outs[0].numel() == 0) return outs[0];
  advise_huge_pages(outs[0]);
  spread_levels({kOp, boxes, nullptr, {o}, batch_size, Reduce::kAssigned}, grad, nullptr, outs);
  return outs[0];
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_roi_align_backward", TORCH_BOX(&d2proj::roi_align::backward_cpu));
}
