// RoIAlign from the levels of a pyramid on the CPU: roi_align's kernels, given several maps.
#include <tuple>

#include "multilevel_roi_align/multilevel_roi_align_args.h"
#include "roi_align/roi_align_cpu.h"

namespace d2proj {
namespace multilevel_roi_align {
namespace {

using roi_align::Options;

// The level of each box, for Reduce::kAssigned.
std::vector<int64_t> box_levels(const char* op, const Tensor& boxes, const Levels& levels, int64_t reduce,
                                const Assignment& assignment) {
  if (static_cast<Reduce>(reduce) != Reduce::kAssigned) return {};
  const int64_t count = boxes.size(0);
  std::vector<int64_t> result(count);
  if (levels) {
    const Tensor dense = torch::stable::contiguous(*levels);
    const int64_t* given = static_cast<const int64_t*>(dense.const_data_ptr());
    for (int64_t k = 0; k < count; ++k) {
      check(given[k] >= 0 && given[k] < assignment.levels, op, "levels[", k, "] must be from 0 to ",
            assignment.levels - 1, ", got ", given[k]);
      result[k] = given[k];
    }
    return result;
  }
  const Tensor dense = torch::stable::contiguous(boxes);
  const auto assign = [&](const auto* data) {
    for (int64_t k = 0; k < count; ++k) result[k] = assign_level(data + k * 5 + 1, assignment);
  };
  if (boxes.scalar_type() == ScalarType::Double) {
    assign(static_cast<const double*>(dense.const_data_ptr()));
  } else {
    assign(static_cast<const float*>(dense.const_data_ptr()));
  }
  return result;
}

std::tuple<Tensor, Tensor> forward_cpu(std::vector<Tensor> inputs, const Tensor& boxes, Levels levels,
                                       std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                       int64_t sampling_ratio, bool aligned, int64_t reduce, double canonical_size,
                                       int64_t canonical_level) {
  constexpr const char* kOp = "multilevel_roi_align";
  const Assignment assignment = check_forward(kOp, inputs, boxes, levels, scales, pooled_height, pooled_width, reduce,
                                              canonical_size, canonical_level);
  const bool last = is_channels_last(inputs[0]);
  Tensor out = empty_4d(inputs[0], row_count(boxes, reduce, scales.size()), inputs[0].size(1), pooled_height,
                        pooled_width, last);
  Tensor winner = empty_winner(out, reduce, last);
  if (out.numel() == 0) return {out, winner};
  int64_t pixels = 0;
  for (const Tensor& input : inputs) pixels += input.numel();
  if (pixels == 0) return {torch::stable::zero_(out), torch::stable::zero_(winner)};
  advise_huge_pages(out);
  std::vector<Options> options;
  for (size_t l = 0; l < inputs.size(); ++l) {
    options.push_back(
        {pooled_height, pooled_width, inputs[l].size(2), inputs[l].size(3), scales[l], sampling_ratio, aligned});
  }
  const std::vector<int64_t> assigned = box_levels(kOp, boxes, levels, reduce, assignment);
  const bool max = static_cast<Reduce>(reduce) == Reduce::kMax;
  roi_align::pool_levels(
      {kOp, boxes, assigned.data(), std::move(options), inputs[0].size(0), static_cast<Reduce>(reduce)}, inputs, out,
      max ? &winner : nullptr);
  return {out, winner};
}

std::vector<Tensor> backward_cpu(const Tensor& grad, const Tensor& winner, const Tensor& boxes, Levels levels,
                                 std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                 int64_t batch_size, int64_t channels, std::vector<int64_t> heights,
                                 std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned, int64_t reduce,
                                 double canonical_size, int64_t canonical_level, std::vector<int64_t> channels_last,
                                 bool /*deterministic: always*/) {
  constexpr const char* kOp = "_multilevel_roi_align_backward";
  const Assignment assignment =
      check_backward(kOp, grad, winner, boxes, levels, scales, channels, pooled_height, pooled_width, heights, widths,
                     channels_last, reduce, canonical_size, canonical_level);
  std::vector<Tensor> outs;
  std::vector<Options> options;
  for (size_t l = 0; l < scales.size(); ++l) {
    outs.push_back(empty_4d(grad, batch_size, channels, heights[l], widths[l], channels_last[l] != 0));
    options.push_back({pooled_height, pooled_width, heights[l], widths[l], scales[l], sampling_ratio, aligned});
  }
  if (batch_size == 0 || channels == 0) return outs;
  for (const Tensor& out : outs) advise_huge_pages(out);
  const std::vector<int64_t> assigned = box_levels(kOp, boxes, levels, reduce, assignment);
  const bool max = static_cast<Reduce>(reduce) == Reduce::kMax;
  roi_align::spread_levels({kOp, boxes, assigned.data(), std::move(options), batch_size, static_cast<Reduce>(reduce)},
                           grad, max ? &winner : nullptr, outs);
  return outs;
}

}  // namespace
}  // namespace multilevel_roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&d2proj::multilevel_roi_align::forward_cpu));
  m.impl("_multilevel_roi_align_backward", TORCH_BOX(&d2proj::multilevel_roi_align::backward_cpu));
}
