// Greedy suppression on CUDA under any criterion: sorting, scratch memory and launches around nms_kernels.cuh.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <tuple>

#include "nms/nms_args.h"
#include "nms/nms_rank.cuh"

namespace d2proj {
namespace nms {

// flags[rank] = 1 for the boxes that stay, which are zeroed first. `ids` and `ranks` are null when there is one class.
template <typename Criterion>
void run_chunks(const Tensor& boxes, const uint32_t* order, const uint64_t* ids, const uint32_t* ranks,
                const Criterion& criterion, uint8_t* flags, cudaStream_t stream) {
  using Box = typename Criterion::Box;
  const int64_t count = boxes.size(0);
  check_cuda("nms", cudaMemsetAsync(flags, 0, count, stream));
  const Scratch<Box> sorted_boxes(boxes, count), kept_boxes(boxes, kChunk);
  const Scratch<typename Criterion::Scalar> areas(boxes, count), kept_areas(boxes, kChunk);
  const Scratch<uint64_t> kept_ids(boxes, kChunk);
  const Scratch<uint8_t> removed(boxes, count);
  const Scratch<int> kept_count(boxes, 1);
  const Scratch<Word> mask(boxes, int64_t(kChunk) * kWords);
  gather_kernel<Criterion><<<blocks_for(count, kRankThreads), kRankThreads, 0, stream>>>(
      static_cast<const Box*>(boxes.const_data_ptr()), order, ranks, sorted_boxes.get(), areas.get(), removed.get(),
      count);
  const Sorted<Criterion> sorted{sorted_boxes.get(), areas.get(), ids, removed.get(), count};
  const ChunkKept<Criterion> kept{kept_boxes.get(), kept_areas.get(), kept_ids.get(), kept_count.get()};
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = std::min(count, begin + kChunk);
    const unsigned words = blocks_for(end - begin, kWord);
    mask_kernel<<<dim3(words, words), kWord, 0, stream>>>(sorted, begin, criterion, mask.get());
    greedy_kernel<<<1, kGreedyThreads, 0, stream>>>(sorted, begin, mask.get(), ranks, flags, kept);
    if (end < count) {
      sweep_kernel<<<blocks_for(count - end, kSweepThreads), kSweepThreads, 0, stream>>>(sorted, end, criterion, kept);
    }
  }
  check_cuda("nms", cudaGetLastError());
}

// Boxes ranked by score and, where there are `idxs`, ranks by class.
struct Ranking {
  Ranking(const Tensor& scores, const std::optional<Tensor>& idxs, cudaStream_t stream)
      : many(idxs.has_value()),
        order_(scores, scores.size(0)),
        ranks_(scores, many ? scores.size(0) : 0),
        ids_(scores, many ? scores.size(0) : 0) {
    rank_by_score(scores, order_.get(), stream);
    if (many) group_by_class(*idxs, order_.get(), ids_.get(), ranks_.get(), stream);
  }

  const uint32_t* order() const { return order_.get(); }
  // Null when there is one class.
  const uint32_t* ranks() const { return many ? ranks_.get() : nullptr; }
  const uint64_t* ids() const { return many ? ids_.get() : nullptr; }

 private:
  bool many;
  Scratch<uint32_t> order_, ranks_;
  Scratch<uint64_t> ids_;
};

// order[rank] for the ranks whose flag is set, then -1, and how many there are.
inline std::tuple<Tensor, Tensor> compact(const Tensor& like, const uint32_t* order, const uint8_t* flags,
                                          int64_t count, cudaStream_t stream) {
  Tensor keep = torch::stable::new_empty(like, {&count, 1}, ScalarType::Long);
  Tensor kept = torch::stable::new_empty(like, {}, ScalarType::Long);
  torch::stable::fill_(keep, -1);
  torch::stable::zero_(kept);
  if (count == 0) return {keep, kept};
  int64_t* const out = static_cast<int64_t*>(keep.mutable_data_ptr());
  int64_t* const out_count = static_cast<int64_t*>(kept.mutable_data_ptr());
  run_cub(like, [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::Flagged(memory, bytes, order, flags, out, out_count, count, stream);
  });
  return {keep, kept};
}

// Indices of the kept boxes, then -1, and how many there are; arguments were checked. Nothing waits for the device.
// (The names differ from nms_select.h's: two functions of one name and signature would be one to the linker.)
// `criterion_of(T{})` makes the criterion for boxes of float or double.
template <typename CriterionOf>
std::tuple<Tensor, Tensor> device_select(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                                         const CriterionOf& criterion_of) {
  const CudaDevice device(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const int64_t count = boxes.size(0);
  if (count == 0) return compact(boxes, nullptr, nullptr, 0, stream);
  const Ranking ranking(scores, idxs, stream);
  const Scratch<uint8_t> flags(boxes, count);
  const Tensor dense = prepare_boxes(boxes);
  const auto run = [&](auto tag) {
    run_chunks(dense, ranking.order(), ranking.ids(), ranking.ranks(), criterion_of(tag), flags.get(), stream);
  };
  dense.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return compact(boxes, ranking.order(), flags.get(), count, stream);
}

// The one place that waits for the device: a tensor's size is known to the host.
inline int64_t read_count(const Tensor& count) {
  int64_t value = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(count.get(), &value));
  return value;
}

template <typename CriterionOf>
Tensor device_select_exactly(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                             const CriterionOf& criterion_of) {
  auto [keep, kept] = device_select(boxes, scores, idxs, criterion_of);
  return torch::stable::narrow(keep, 0, 0, read_count(kept));
}

}  // namespace nms
}  // namespace d2proj
