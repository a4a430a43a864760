// Soft-NMS on CUDA: one block for each class, from its first box to its last; nothing goes to the host in between.
#include "nms/nms_dets.cuh"
#include "soft_nms/soft_nms.h"

namespace d2proj {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kMostBlocks = 1024;

// Boxes of a class at consecutive positions, by ascending index; `score` is 0 for those no longer in play.
template <typename T>
struct Field {
  Box<T>* boxes;
  T* areas;
  uint32_t* index;
  T* scores;
};

template <typename T>
struct Outcome {
  T* rescored;  // by index
  uint8_t* kept;
};

// Boxes that take part go into the field; what becomes of the others, and of those never taken, is clear now.
template <typename T>
__global__ void start_kernel(Field<T> field, const T* scores, Outcome<T> outcome, T min_score, int64_t count) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count) return;
  const uint32_t i = field.index[p];
  const T score = scores[i];
  const bool stays = nms::stays(score, min_score);
  const bool active = stays && score > T(0) && field.areas[p] > T(0);  // inert boxes were given no area
  field.scores[p] = active ? score : T(0);
  // Unless it is taken, the score of an active box has fallen below min_score, or to zero.
  outcome.rescored[i] = active ? T(0) : score;
  outcome.kept[i] = active ? nms::stays(T(0), min_score) : stays;
}

static __global__ void first_of_class_kernel(const uint64_t* ids, uint8_t* first, int64_t count) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p < count) first[p] = p == 0 || (ids != nullptr && ids[p] != ids[p - 1]);
}

// The best box of a thread, a warp, the block, and how many are in play.
template <typename T>
struct Best {
  T score;
  int position;  // in the class; of equal scores the lowest
  int alive;

  __device__ void merge(const Best& other) {
    if (other.score > score || (other.score == score && other.position < position)) {
      score = other.score;
      position = other.position;
    }
    alive += other.alive;
  }

  __device__ void merge_warp() {
    for (int offset = 16; offset > 0; offset /= 2) {
      merge({__shfl_down_sync(0xffffffffu, score, offset), __shfl_down_sync(0xffffffffu, position, offset),
             __shfl_down_sync(0xffffffffu, alive, offset)});
    }
  }
};

// Packs the boxes in play, without the one at `taken`, in the order they have. Every thread of the block calls it.
template <typename T>
__device__ void pack(const Field<T>& field, int64_t begin, int length, int taken) {
  __shared__ int warp_sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t to = begin;
  for (int64_t tile = 0; tile < length; tile += kThreads) {
    const int64_t offset = tile + threadIdx.x, p = begin + offset;
    const bool alive = offset < length && offset != taken && field.scores[p] > T(0);
    const unsigned ballot = __ballot_sync(0xffffffffu, alive);
    Box<T> box{};
    T area = 0, score = 0;
    uint32_t index = 0;
    if (alive) {
      box = field.boxes[p];
      area = field.areas[p];
      score = field.scores[p];
      index = field.index[p];
    }
    if (lane == 0) warp_sums[warp] = __popc(ballot);
    __syncthreads();  // the tile is in registers: its places may be overwritten
    int before = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += warp_sums[w];
      total += warp_sums[w];
    }
    if (alive) {
      const int64_t slot = to + before + __popc(ballot & ((1u << lane) - 1));
      field.boxes[slot] = box;
      field.areas[slot] = area;
      field.scores[slot] = score;
      field.index[slot] = index;
    }
    to += total;
    __syncthreads();
  }
}

template <typename T, bool kGauss>
__global__ void __launch_bounds__(kThreads)
    soft_nms_kernel(Field<T> field, Outcome<T> outcome, const int64_t* firsts, const int64_t* classes, int64_t count,
                    T above, T inverse, T min_score) {
  __shared__ Best<T> warp_best[kWarps];
  __shared__ Best<T> block_best;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t c = blockIdx.x; c < *classes; c += gridDim.x) {
    const int64_t begin = firsts[c];
    int length = static_cast<int>((c + 1 < *classes ? firsts[c + 1] : count) - begin);
    Best<T> best{T(0), 0, 0};
    for (int64_t offset = threadIdx.x; offset < length; offset += kThreads) {
      const T score = field.scores[begin + offset];
      if (score > T(0)) best.merge({score, static_cast<int>(offset), 1});
    }
    for (;;) {
      best.merge_warp();
      if (lane == 0) warp_best[warp] = best;
      __syncthreads();
      if (warp == 0) {
        best = warp_best[lane];
        best.merge_warp();
        if (lane == 0) block_best = best;
      }
      __syncthreads();
      const Best<T> taken = block_best;
      if (!(taken.score > T(0))) break;
      const int64_t p = begin + taken.position;
      const Box<T> box = field.boxes[p];
      const T area = field.areas[p];
      if (threadIdx.x == 0) {
        outcome.kept[field.index[p]] = 1;
        outcome.rescored[field.index[p]] = taken.score;
      }
      int skip = taken.position;
      if (2 * int64_t(taken.alive) < length && length > 4 * kThreads) {  // half of them gone: the rest move together
        pack(field, begin, length, skip);
        length = taken.alive - 1;
        skip = -1;
      }
      best = {T(0), 0, 0};
      for (int64_t offset = threadIdx.x; offset < length; offset += kThreads) {
        const int64_t q = begin + offset;
        T score = field.scores[q];
        if (!(score > T(0))) continue;
        if (offset == skip) {
          field.scores[q] = T(0);
          continue;
        }
        const T iou = box_iou(box, area, field.boxes[q], field.areas[q]);
        if (iou > above) {
          T weight;
          if constexpr (kGauss) {
            soft_nms::gaussian_weight<T>(weight, iou, inverse);
          } else {
            soft_nms::linear_weight(weight, iou, above);
          }
          score *= weight;
          if (score < min_score) score = T(0);
          field.scores[q] = score;
        }
        if (score > T(0)) best.merge({score, static_cast<int>(offset), 1});
      }
    }
    __syncthreads();  // block_best has been read
  }
}

template <typename T>
std::tuple<Tensor, Tensor> run_soft(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                                    const soft_nms::Options& options, cudaStream_t stream) {
  const int64_t count = boxes.size(0);
  const bool many = idxs.has_value();
  const Scratch<uint32_t> ranks(boxes, many ? count : 0), ascending(boxes, count);
  const Scratch<uint64_t> ids(boxes, many ? count : 0);
  const unsigned blocks = blocks_for(count, nms::kRankThreads);
  nms::iota_kernel<<<blocks, nms::kRankThreads, 0, stream>>>(ascending.get(), count);
  if (many) nms::group_by_class(*idxs, ascending.get(), ids.get(), ranks.get(), stream);
  const nms::Placed<T> placed(boxes, nullptr, many ? ranks.get() : nullptr, many ? ids.get() : nullptr, stream);
  const Scratch<T> working(boxes, count);
  const Scratch<uint8_t> kept(boxes, count), first(boxes, count);
  const Scratch<int64_t> firsts(boxes, count), classes(boxes, 1);
  const Tensor rescored = torch::stable::new_empty(scores, {&count, 1});
  const Field<T> field{placed.boxes(), placed.areas(), placed.index(), working.get()};
  const Outcome<T> outcome{static_cast<T*>(rescored.mutable_data_ptr()), kept.get()};
  const T min_score = static_cast<T>(options.min_score);
  start_kernel<<<blocks, nms::kRankThreads, 0, stream>>>(field, static_cast<const T*>(scores.const_data_ptr()), outcome,
                                                         min_score, count);
  first_of_class_kernel<<<blocks, nms::kRankThreads, 0, stream>>>(many ? ids.get() : nullptr, first.get(), count);
  run_cub(boxes, [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::Flagged(memory, bytes, ascending.get(), first.get(), firsts.get(), classes.get(), count,
                                      stream);
  });
  const unsigned grid = many ? std::min<unsigned>(kMostBlocks, static_cast<unsigned>(count)) : 1;
  const T inverse = T(1) / static_cast<T>(options.sigma);
  if (options.method == soft_nms::kGaussian) {
    soft_nms_kernel<T, true>
        <<<grid, kThreads, 0, stream>>>(field, outcome, firsts.get(), classes.get(), count, T(0), inverse, min_score);
  } else {
    const T above = soft_nms::just_below<T>(options.iou_threshold);
    soft_nms_kernel<T, false>
        <<<grid, kThreads, 0, stream>>>(field, outcome, firsts.get(), classes.get(), count, above, inverse, min_score);
  }
  check_cuda("soft_nms", cudaGetLastError());
  return nms::write_dets(boxes, static_cast<const Box<T>*>(boxes.const_data_ptr()), rescored, kept.get(), stream);
}

// kept[index] for boxes that greedy suppression left and whose score is high enough.
template <typename T>
__global__ void hard_kernel(const uint8_t* flags, const uint32_t* order, const T* scores, T min_score, uint8_t* kept,
                            int64_t count) {
  const int64_t rank = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank < count) kept[order[rank]] = flags[rank] && nms::stays(scores[order[rank]], min_score);
}

template <typename T>
std::tuple<Tensor, Tensor> run_hard(const Tensor& boxes, const Tensor& b, const Tensor& scores, const Tensor& s,
                                    const std::optional<Tensor>& idxs, const soft_nms::Options& options,
                                    cudaStream_t stream) {
  const int64_t count = b.size(0);
  const nms::Ranking ranking(scores, idxs, stream);
  const Scratch<uint8_t> flags(b, count), kept(b, count);
  const Tensor dense = nms::prepare_boxes(boxes);
  const auto suppress = [&](auto tag) {
    nms::run_chunks(dense, ranking.order(), ranking.ids(), ranking.ranks(),
                    soft_nms::iou_at_least(options.iou_threshold)(tag), flags.get(), stream);
  };
  dense.scalar_type() == ScalarType::Double ? suppress(double{}) : suppress(float{});
  hard_kernel<<<blocks_for(count, nms::kRankThreads), nms::kRankThreads, 0, stream>>>(
      flags.get(), ranking.order(), static_cast<const T*>(s.const_data_ptr()), static_cast<T>(options.min_score),
      kept.get(), count);
  return nms::write_dets(b, static_cast<const Box<T>*>(b.const_data_ptr()), s, kept.get(), stream);
}

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                         double iou_threshold, double sigma, double min_score, int64_t method) {
  const char* const op = idxs.has_value() ? "batched_soft_nms" : "soft_nms";
  const soft_nms::Options options{iou_threshold, sigma, min_score, method};
  nms::check_arguments(op, boxes, scores, idxs);
  soft_nms::check_options(op, options);
  const CudaDevice device(boxes);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    using T = decltype(tag);
    const cudaStream_t stream = current_stream(boxes);
    return method == soft_nms::kHard ? run_hard<T>(boxes, b, scores, s, idxs, options, stream)
                                     : run_soft<T>(b, s, idxs, options, stream);
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&d2proj::soft_nms_cuda)); }
