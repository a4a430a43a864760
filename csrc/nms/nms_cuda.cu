// Non-maximum suppression on CUDA: sorting, scratch memory and launches around nms_kernels.cuh.
#include <cuda_runtime.h>

#include <algorithm>
#include <tuple>

#include "nms/nms_args.h"
#include "nms/nms_rank.cuh"

namespace d2proj {
namespace {

constexpr int kThreads = 256;

// flags[rank] = 1 for the boxes that stay. `ids` and `ranks` are null when there is one class.
template <typename T>
void run_chunks(const Tensor& boxes, const uint32_t* order, const uint64_t* ids, const uint32_t* ranks,
                double threshold, uint8_t* flags, cudaStream_t stream) {
  const int64_t count = boxes.size(0);
  const Scratch<Box<T>> sorted_boxes(boxes, count), kept_boxes(boxes, nms::kChunk);
  const Scratch<T> areas(boxes, count), kept_areas(boxes, nms::kChunk);
  const Scratch<uint64_t> kept_ids(boxes, nms::kChunk);
  const Scratch<uint8_t> removed(boxes, count);
  const Scratch<int> kept_count(boxes, 1);
  const Scratch<nms::Word> mask(boxes, int64_t(nms::kChunk) * nms::kWords);
  nms::gather_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(
      static_cast<const Box<T>*>(boxes.const_data_ptr()), order, ranks, sorted_boxes.get(), areas.get(), removed.get(),
      count);
  const nms::Sorted<T> sorted{sorted_boxes.get(), areas.get(), ids, removed.get(), count};
  const nms::ChunkKept<T> kept{kept_boxes.get(), kept_areas.get(), kept_ids.get(), kept_count.get()};
  const T exact = nms::round_down<T>(threshold);
  for (int64_t begin = 0; begin < count; begin += nms::kChunk) {
    const int64_t end = std::min(count, begin + nms::kChunk);
    const unsigned words = blocks_for(end - begin, nms::kWord);
    nms::mask_kernel<<<dim3(words, words), nms::kWord, 0, stream>>>(sorted, begin, exact, mask.get());
    nms::greedy_kernel<<<1, nms::kGreedyThreads, 0, stream>>>(sorted, begin, mask.get(), ranks, flags, kept);
    if (end < count) {
      nms::sweep_kernel<<<blocks_for(count - end, nms::kSweepThreads), nms::kSweepThreads, 0, stream>>>(sorted, end,
                                                                                                        exact, kept);
    }
  }
  check_cuda("nms", cudaGetLastError());
}

// Indices of the kept boxes, then -1, and how many there are. Nothing waits for the device.
std::tuple<Tensor, Tensor> select(const char* op, const Tensor& boxes, const Tensor& scores,
                                  const std::optional<Tensor>& idxs, double threshold) {
  nms::check_arguments(op, boxes, scores, idxs);
  const CudaDevice device(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const int64_t count = boxes.size(0);
  Tensor keep = torch::stable::new_empty(boxes, {&count, 1}, ScalarType::Long);
  Tensor kept = torch::stable::new_empty(boxes, {}, ScalarType::Long);
  torch::stable::fill_(keep, -1);
  torch::stable::zero_(kept);
  if (count == 0) return {keep, kept};
  const Scratch<uint32_t> order(boxes, count), ranks(boxes, idxs.has_value() ? count : 0);
  const Scratch<uint64_t> ids(boxes, idxs.has_value() ? count : 0);
  nms::rank_by_score(scores, order.get(), stream);
  if (idxs.has_value()) nms::group_by_class(*idxs, order.get(), ids.get(), ranks.get(), stream);
  const Scratch<uint8_t> flags(boxes, count);
  check_cuda(op, cudaMemsetAsync(flags.get(), 0, count, stream));
  const Tensor dense = nms::prepare_boxes(boxes);
  const auto run = [&](auto tag) {
    run_chunks<decltype(tag)>(dense, order.get(), idxs.has_value() ? ids.get() : nullptr,
                              idxs.has_value() ? ranks.get() : nullptr, threshold, flags.get(), stream);
  };
  dense.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  int64_t* const out = static_cast<int64_t*>(keep.mutable_data_ptr());
  int64_t* const out_count = static_cast<int64_t*>(kept.mutable_data_ptr());
  run_cub(boxes, [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::Flagged(memory, bytes, order.get(), flags.get(), out, out_count, count, stream);
  });
  return {keep, kept};
}

// The one place that waits for the device: a tensor's size is known to the host.
Tensor select_exactly(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                      double threshold) {
  auto [keep, kept] = select(op, boxes, scores, idxs, threshold);
  int64_t count = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(kept.get(), &count));
  return torch::stable::narrow(keep, 0, 0, count);
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return select_exactly("nms", boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return select_exactly("batched_nms", boxes, scores, idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                           double iou_threshold) {
  return select("nms_padded", boxes, scores, idxs, iou_threshold);
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("nms", TORCH_BOX(&d2proj::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&d2proj::batched_nms_cuda));
  m.impl("_nms_padded", TORCH_BOX(&d2proj::nms_padded_cuda));
}
