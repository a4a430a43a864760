// What NMS ops that give back scores share on CUDA: boxes sorted by class and rank, a pass over the boxes that rank
// before (or after) each within its class, and the result.
#pragma once

#include "nms/nms_decay.h"
#include "nms/nms_select.cuh"

namespace d2proj {
namespace nms {

// Positions: boxes by (class, rank). `ids` is null when there is one class.
template <typename T>
struct Positions {
  const Box<T>* boxes;  // inert ones are all zero: they overlap nothing
  const T* areas;
  const uint64_t* ids;
  const uint32_t* index;  // of the box at a position
  int64_t count;

  // The first position of p's class, and one past its last.
  __device__ int64_t class_begin(int64_t p) const { return ids == nullptr ? 0 : bound(0, p, ids[p], false); }
  __device__ int64_t class_end(int64_t p) const { return ids == nullptr ? count : bound(p, count, ids[p], true); }

 private:
  // The first position in [from, to) whose id is at least `id` (or, with `above`, above it); else `to`.
  __device__ int64_t bound(int64_t from, int64_t to, uint64_t id, bool above) const {
    while (from < to) {
      const int64_t middle = from + (to - from) / 2;
      if (ids[middle] < id || (above && ids[middle] == id)) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  }
};

// `order` and `ranks` may be null: positions are ranks, ranks indices.
template <typename T>
__global__ void positions_kernel(const Box<T>* boxes, const uint32_t* order, const uint32_t* ranks, Box<T>* sorted,
                                 T* areas, uint32_t* index, int64_t count) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count) return;
  const uint32_t rank = ranks == nullptr ? static_cast<uint32_t>(p) : ranks[p];
  const uint32_t i = order == nullptr ? rank : order[rank];
  const Box<T> box = boxes[i];
  const T area = box_area(box);
  const bool out = inert(box, area);
  sorted[p] = out ? Box<T>{} : box;
  areas[p] = out ? T(0) : area;
  index[p] = i;
}

// Holds what Positions points at.
template <typename T>
class Placed {
 public:
  Placed(const Tensor& boxes, const uint32_t* order, const uint32_t* ranks, const uint64_t* ids, cudaStream_t stream)
      : boxes_(boxes, boxes.size(0)),
        areas_(boxes, boxes.size(0)),
        index_(boxes, boxes.size(0)),
        ids_(ids),
        count_(boxes.size(0)) {
    positions_kernel<<<blocks_for(count_, kRankThreads), kRankThreads, 0, stream>>>(
        static_cast<const Box<T>*>(boxes.const_data_ptr()), order, ranks, boxes_.get(), areas_.get(), index_.get(),
        count_);
  }

  Positions<T> get() const { return {boxes_.get(), areas_.get(), ids_, index_.get(), count_}; }
  Box<T>* boxes() const { return boxes_.get(); }
  T* areas() const { return areas_.get(); }
  uint32_t* index() const { return index_.get(); }

 private:
  Scratch<Box<T>> boxes_;
  Scratch<T> areas_;
  Scratch<uint32_t> index_;
  const uint64_t* ids_;
  int64_t count_;
};

constexpr int kPassThreads = 256;

// For each position p that `step` wants: its `State`, put through add(state, iou, i) for every i of its class that
// ranks before it (kWorse: after it), ascending, then through finish(p, state). IoUs are in [0, 1], never NaN. One
// thread each.
template <typename T, bool kWorse, typename Step>
__global__ void __launch_bounds__(kPassThreads) pass_kernel(Positions<T> positions, Step step) {
  __shared__ Box<T> tile_boxes[kPassThreads];
  __shared__ T tile_areas[kPassThreads];
  // The longest first: later positions have more before them, earlier ones more after them.
  const int64_t block = kWorse ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  const int64_t first = block * kPassThreads;
  const int64_t last = (first + kPassThreads < positions.count ? first + kPassThreads : positions.count) - 1;
  const int64_t p = first + threadIdx.x;
  const bool wanted = p <= last && step.wants(p);
  if (!__syncthreads_or(wanted)) return;
  int64_t from = 0, to = 0;
  Box<T> box{};
  T area = 0;
  typename Step::State state{};
  if (wanted) {
    from = kWorse ? p + 1 : positions.class_begin(p);
    to = kWorse ? positions.class_end(p) : p;
    box = positions.boxes[p];
    area = positions.areas[p];
    state = step.start(p);
  }
  const int64_t begin = kWorse ? first + 1 : positions.class_begin(first);
  const int64_t end = kWorse ? positions.class_end(last) : last;
  for (int64_t tile = begin; tile < end; tile += kPassThreads) {
    const int size = static_cast<int>(end - tile < kPassThreads ? end - tile : kPassThreads);
    __syncthreads();  // the last tile has been read
    if (threadIdx.x < size) {
      tile_boxes[threadIdx.x] = positions.boxes[tile + threadIdx.x];
      tile_areas[threadIdx.x] = positions.areas[tile + threadIdx.x];
    }
    __syncthreads();
    for (int k = 0; k < size; ++k) {
      const int64_t i = tile + k;
      if (i < from || i >= to) continue;
      const T iou = box_iou(tile_boxes[k], tile_areas[k], box, area);
      step.add(state, iou > T(0) ? (iou < T(1) ? iou : T(1)) : T(0), i);
    }
  }
  if (wanted) step.finish(p, state);
}

template <bool kWorse, typename T, typename Step>
void run_pass(const Positions<T>& positions, const Step& step, cudaStream_t stream) {
  pass_kernel<T, kWorse><<<blocks_for(positions.count, kPassThreads), kPassThreads, 0, stream>>>(positions, step);
}

static __global__ void flags_by_rank_kernel(const uint8_t* kept, const uint32_t* order, uint8_t* flags, int64_t count) {
  const int64_t rank = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank < count) flags[rank] = kept[order[rank]];
}

// kept[index] from flags[rank].
static __global__ void flags_by_index_kernel(const uint8_t* flags, const uint32_t* order, uint8_t* kept,
                                             int64_t count) {
  const int64_t rank = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank < count) kept[order[rank]] = flags[rank];
}

template <typename T>
__global__ void dets_kernel(const Box<T>* boxes, const T* scores, const int64_t* keep, T* dets, int64_t count) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= count || keep[k] < 0) return;
  const Box<T> box = boxes[keep[k]];
  T* const row = dets + 5 * k;
  row[0] = box.x1;
  row[1] = box.y1;
  row[2] = box.x2;
  row[3] = box.y2;
  row[4] = scores[keep[k]];
}

// (k, 5) boxes with `scores`, by descending score, and their indices: of those whose flag in `kept` is set. The one
// place that waits for the device: a tensor's size is known to the host.
template <typename T>
std::tuple<Tensor, Tensor> write_dets(const Tensor& like, const Box<T>* boxes, const Tensor& scores,
                                      const uint8_t* kept, cudaStream_t stream) {
  const int64_t count = scores.size(0), sizes[2] = {count, 5};
  const Scratch<uint32_t> order(like, count);
  const Scratch<uint8_t> flags(like, count);
  rank_by_score(scores, order.get(), stream);
  const unsigned blocks = blocks_for(count, kRankThreads);
  flags_by_rank_kernel<<<blocks, kRankThreads, 0, stream>>>(kept, order.get(), flags.get(), count);
  auto [keep, found] = compact(like, order.get(), flags.get(), count, stream);
  Tensor dets = torch::stable::new_empty(like, {sizes, 2});
  dets_kernel<<<blocks, kRankThreads, 0, stream>>>(boxes, static_cast<const T*>(scores.const_data_ptr()),
                                                   static_cast<const int64_t*>(keep.const_data_ptr()),
                                                   static_cast<T*>(dets.mutable_data_ptr()), count);
  check_cuda("nms", cudaGetLastError());
  const int64_t length = read_count(found);
  return {torch::stable::narrow(dets, 0, 0, length), torch::stable::narrow(keep, 0, 0, length)};
}

inline std::tuple<Tensor, Tensor> no_dets(const Tensor& like) {
  const int64_t sizes[2] = {0, 5};
  return {torch::stable::new_empty(like, {sizes, 2}), torch::stable::new_empty(like, {sizes, 1}, ScalarType::Long)};
}

// Calls body(T{}, boxes, scores) with both as contiguous tensors of T.
template <typename Body>
std::tuple<Tensor, Tensor> with_one_dtype(const Tensor& boxes, const Tensor& scores, const Body& body) {
  const ScalarType type = dets_dtype(boxes, scores);
  const Tensor b = torch::stable::contiguous(torch::stable::to(boxes, type));
  const Tensor s = torch::stable::contiguous(torch::stable::to(scores, type));
  if (b.size(0) == 0) return no_dets(b);
  return type == ScalarType::Double ? body(double{}, b, s) : body(float{}, b, s);
}

}  // namespace nms
}  // namespace d2proj
