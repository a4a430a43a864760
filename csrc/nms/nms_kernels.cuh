// The CUDA kernels of non-maximum suppression. No torch header.
//
// Boxes sorted by (class, score) are worked off in chunks of kChunk: a bit mask of who suppresses whom
// inside the chunk, a greedy pass of one block over it, then all later boxes against what the chunk
// kept. The mask is kChunk^2 bits whatever the number of boxes, and nothing goes to the host.
#pragma once

#include <cstdint>

#include "nms/nms.h"

namespace d2proj {
namespace nms {

constexpr int kWord = 64;               // boxes per mask word, and threads per block of mask_kernel
constexpr int kWords = 32;              // mask words per row
constexpr int kChunk = kWord * kWords;  // boxes per chunk
constexpr int kGreedyThreads = 1024;
constexpr int kSweepThreads = 256;
using Word = unsigned long long;  // what 64-bit atomics take

// Kernels take who suppresses whom as a `Criterion` (IouCriterion in nms.h is one): types `Scalar` and `Box`,
// `static Scalar area(const Box&)`, and whether `a`, kept, removes `b`: `operator()(a, area_a, b, area_b)`.

// Boxes by (class, score); `ids` is null when there is one class.
template <typename Criterion>
struct Sorted {
  const typename Criterion::Box* boxes;
  const typename Criterion::Scalar* areas;
  const uint64_t* ids;
  uint8_t* removed;
  int64_t count;
};

// What the chunk at hand has kept.
template <typename Criterion>
struct ChunkKept {
  typename Criterion::Box* boxes;  // kChunk
  typename Criterion::Scalar* areas;
  uint64_t* ids;
  int* count;
};

template <typename T, typename S>
__global__ void key_kernel(const S* scores, Key<T>* keys, uint32_t* index, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  keys[i] = descending_key(static_cast<T>(scores[i]));
  index[i] = static_cast<uint32_t>(i);
}

static __global__ void class_key_kernel(const int64_t* idxs, const uint32_t* order, uint64_t* keys, uint32_t* ranks,
                                        int64_t count) {
  const int64_t rank = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank >= count) return;
  keys[rank] = ascending_key(idxs[order[rank]]);
  ranks[rank] = static_cast<uint32_t>(rank);
}

// `ranks` is null when there is one class: position and rank are the same then.
template <typename Criterion>
__global__ void gather_kernel(const typename Criterion::Box* boxes, const uint32_t* order, const uint32_t* ranks,
                              typename Criterion::Box* sorted, typename Criterion::Scalar* areas, uint8_t* removed,
                              int64_t count) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count) return;
  const typename Criterion::Box box = boxes[order[ranks == nullptr ? p : ranks[p]]];
  sorted[p] = box;
  areas[p] = Criterion::area(box);
  removed[p] = 0;
}

// mask[row][w], bit b: the chunk's box `row` suppresses its box 64 w + b. Only words w >= row / 64 are written.
// Blocks of kWord threads, a (w, row / 64) grid.
template <typename Criterion>
__global__ void __launch_bounds__(kWord)
    mask_kernel(Sorted<Criterion> sorted, int64_t begin, Criterion suppresses, Word* mask) {
  using Box = typename Criterion::Box;
  using T = typename Criterion::Scalar;
  if (blockIdx.x < blockIdx.y) return;
  __shared__ Box column_boxes[kWord];
  __shared__ T column_areas[kWord];
  __shared__ uint64_t column_ids[kWord];
  const int64_t first_column = begin + int64_t(blockIdx.x) * kWord;
  const int64_t column = first_column + threadIdx.x;
  if (column < sorted.count) {
    column_boxes[threadIdx.x] = sorted.boxes[column];
    column_areas[threadIdx.x] = sorted.areas[column];
    column_ids[threadIdx.x] = sorted.ids == nullptr ? 0 : sorted.ids[column];
  }
  __syncthreads();
  const int64_t row = begin + int64_t(blockIdx.y) * kWord + threadIdx.x;
  if (row >= sorted.count) return;
  Word bits = 0;
  if (!sorted.removed[row]) {
    const Box box = sorted.boxes[row];
    const T area = sorted.areas[row];
    const uint64_t id = sorted.ids == nullptr ? 0 : sorted.ids[row];
    const int64_t left = sorted.count - first_column;
    const int columns = left < kWord ? static_cast<int>(left) : kWord;
    for (int b = blockIdx.x == blockIdx.y ? threadIdx.x + 1 : 0; b < columns; ++b) {
      if (column_ids[b] == id && suppresses(box, area, column_boxes[b], column_areas[b])) {
        bits |= Word(1) << b;
      }
    }
  }
  mask[(row - begin) * kWords + blockIdx.x] = bits;
}

// One block of kGreedyThreads: which boxes of the chunk stay. Sets their flags (by rank) and lists them.
template <typename Criterion>
__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(Sorted<Criterion> sorted, int64_t begin, const Word* mask, const uint32_t* ranks, uint8_t* flags,
                  ChunkKept<Criterion> kept) {
  __shared__ Word dead[kWords];
  __shared__ Word stays[kWords];
  __shared__ Word diagonal[kWord];
  __shared__ int offset[kWords + 1];
  const int64_t left = sorted.count - begin;
  const int length = left < kChunk ? static_cast<int>(left) : kChunk;
  const int words = (length + kWord - 1) / kWord;
  const int thread = threadIdx.x;
  if (thread < kWords) dead[thread] = 0;
  __syncthreads();
  for (int i = thread; i < kChunk; i += kGreedyThreads) {
    if (i >= length || sorted.removed[begin + i]) atomicOr(&dead[i / kWord], Word(1) << (i % kWord));
  }
  __syncthreads();
  for (int w = 0; w < words; ++w) {
    if (thread < kWord) {
      const int row = w * kWord + thread;
      diagonal[thread] = row < length ? mask[int64_t(row) * kWords + w] : 0;
    }
    __syncthreads();
    if (thread == 0) {
      Word alive = ~dead[w], stay = 0;
      while (alive != 0) {
        const int b = __ffsll(static_cast<long long>(alive)) - 1;
        stay |= Word(1) << b;
        alive &= ~(diagonal[b] | Word(1) << b);  // a row's bits lie above its own, so earlier boxes stay decided
      }
      stays[w] = stay;
    }
    __syncthreads();
    // 32 threads read one row's words together; each looks after one word of every 32nd row.
    const int v = thread % kWords;
    if (v > w && v < words) {
      Word bits = 0;
      for (int b = thread / kWords; b < kWord; b += kGreedyThreads / kWords) {
        if (stays[w] >> b & 1) bits |= mask[int64_t(w * kWord + b) * kWords + v];
      }
      if (bits != 0) atomicOr(&dead[v], bits);
    }
    __syncthreads();
  }
  if (thread == 0) {
    offset[0] = 0;
    for (int w = 0; w < words; ++w) offset[w + 1] = offset[w] + __popcll(stays[w]);
    *kept.count = offset[words];
  }
  __syncthreads();
  for (int i = thread; i < length; i += kGreedyThreads) {
    const Word stay = stays[i / kWord];
    const int b = i % kWord;
    if (!(stay >> b & 1)) continue;
    const int slot = offset[i / kWord] + __popcll(stay & ((Word(1) << b) - 1));
    const int64_t p = begin + i;
    kept.boxes[slot] = sorted.boxes[p];
    kept.areas[slot] = sorted.areas[p];
    if (sorted.ids != nullptr) kept.ids[slot] = sorted.ids[p];
    flags[ranks == nullptr ? p : ranks[p]] = 1;
  }
}

// Removes boxes after the chunk, which ends at `end`, that a box kept in it suppresses. One thread a box.
template <typename Criterion>
__global__ void __launch_bounds__(kSweepThreads)
    sweep_kernel(Sorted<Criterion> sorted, int64_t end, Criterion suppresses, ChunkKept<Criterion> kept) {
  using Box = typename Criterion::Box;
  using T = typename Criterion::Scalar;
  __shared__ Box kept_boxes[kSweepThreads];
  __shared__ T kept_areas[kSweepThreads];
  __shared__ uint64_t kept_ids[kSweepThreads];
  const int64_t p = end + int64_t(blockIdx.x) * kSweepThreads + threadIdx.x;
  bool open = p < sorted.count && !sorted.removed[p];
  // Classes are contiguous: a later box meets boxes of the chunk only if it is of the class that the chunk ends in.
  const uint64_t id = open && sorted.ids != nullptr ? sorted.ids[p] : 0;
  if (open && sorted.ids != nullptr && id != sorted.ids[end - 1]) open = false;
  const Box box = open ? sorted.boxes[p] : Box{};
  const T area = open ? sorted.areas[p] : T(0);
  const int count = *kept.count;
  for (int first = 0; first < count; first += kSweepThreads) {
    // Also keeps the tile from being overwritten while it is read.
    if (!__syncthreads_or(open)) return;
    if (first + threadIdx.x < count) {
      kept_boxes[threadIdx.x] = kept.boxes[first + threadIdx.x];
      kept_areas[threadIdx.x] = kept.areas[first + threadIdx.x];
      kept_ids[threadIdx.x] = sorted.ids == nullptr ? 0 : kept.ids[first + threadIdx.x];
    }
    __syncthreads();
    const int tile = count - first < kSweepThreads ? count - first : kSweepThreads;
    for (int k = 0; open && k < tile; ++k) {
      if (kept_ids[k] == id && suppresses(kept_boxes[k], kept_areas[k], box, area)) {
        sorted.removed[p] = 1;
        open = false;
      }
    }
  }
}

}  // namespace nms
}  // namespace d2proj
