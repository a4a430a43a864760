// What every CUDA op of the NMS family does first: boxes ranked by score, ranks grouped by class.
#pragma once

#include "common/scratch.cuh"
#include "nms/nms_kernels.cuh"

namespace d2proj {
namespace nms {

constexpr int kRankThreads = 256;

static __global__ void iota_kernel(uint32_t* out, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = static_cast<uint32_t>(i);
}

// order[rank]: index of the box with that rank.
inline void rank_by_score(const Tensor& scores, uint32_t* order, cudaStream_t stream) {
  const Tensor dense = torch::stable::contiguous(scores);
  const int64_t count = dense.size(0);
  dispatch_floating(scores.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    using T = accumulate_t<S>;
    const Scratch<Key<T>> keys(scores, count), sorted_keys(scores, count);
    const Scratch<uint32_t> index(scores, count);
    key_kernel<T><<<blocks_for(count, kRankThreads), kRankThreads, 0, stream>>>(
        static_cast<const S*>(dense.const_data_ptr()), keys.get(), index.get(), count);
    sort_pairs(scores, keys.get(), sorted_keys.get(), index.get(), order, count, stream);
  });
}

// ids: class keys, ascending; ranks: the ranks of the boxes in that order, ascending within a class.
inline void group_by_class(const Tensor& idxs, const uint32_t* order, uint64_t* ids, uint32_t* ranks,
                           cudaStream_t stream) {
  const Tensor dense = torch::stable::contiguous(idxs);
  const int64_t count = dense.size(0);
  const Scratch<uint64_t> keys(idxs, count);
  const Scratch<uint32_t> by_rank(idxs, count);
  class_key_kernel<<<blocks_for(count, kRankThreads), kRankThreads, 0, stream>>>(
      static_cast<const int64_t*>(dense.const_data_ptr()), order, keys.get(), by_rank.get(), count);
  sort_pairs(idxs, keys.get(), ids, by_rank.get(), ranks, count, stream);
}

}  // namespace nms
}  // namespace d2proj
