// roi_align's forward pass on the CPU, and that of every op that pools upright boxes.
#include "roi_align/roi_align_forward.h"

namespace d2proj {
namespace roi_align {

void pool_levels(const Pooling& p, const std::vector<Tensor>& inputs, Tensor& out, Tensor* winner) {
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor boxes = boxes_as<A>(p.boxes);
    const A* data = static_cast<const A*>(boxes.const_data_ptr());
    std::vector<View> views;
    std::vector<Group> groups;
    lay_out_views(p, data, views, groups);
    const Plan<A> plan(data, views, p.levels);
    std::vector<Map<const T>> maps;
    for (const Tensor& input : inputs) maps.push_back(read_map<T>(input));
    signed char* winners = winner ? static_cast<signed char*>(winner->mutable_data_ptr()) : nullptr;
    forward<T, A, Plan<A>>({maps, write_map<T>(out), out.size(1), plan, p.levels,
                            views_per_row(p.reduce, p.levels.size()), p.reduce == Reduce::kMax, winners},
                           groups);
  });
}

namespace {

Tensor forward_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kOp = "roi_align";
  check_forward(kOp, input, boxes, pooled_height, pooled_width);
  const Options o{pooled_height, pooled_width, input.size(2), input.size(3), spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(input, boxes.size(0), input.size(1), pooled_height, pooled_width, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  advise_huge_pages(out);
  pool_levels({kOp, boxes, nullptr, {o}, input.size(0), Reduce::kAssigned}, {input}, out, nullptr);
  return out;
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("roi_align", TORCH_BOX(&d2proj::roi_align::forward_cpu)); }
