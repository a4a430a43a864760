// Scratch memory and cub's algorithms for CUDA entry points.
#pragma once

#include <cub/cub.cuh>

#include "common/cuda.h"

namespace d2proj {

// Device memory for the time of one call. Freed in stream order by torch's caching allocator.
template <typename T>
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t count) : tensor_(bytes(like, count * int64_t(sizeof(T)))) {}

  T* get() const { return static_cast<T*>(tensor_.mutable_data_ptr()); }

 private:
  static Tensor bytes(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {&count, 1}, ScalarType::Byte);
  }

  Tensor tensor_;
};

// Runs one of cub's two-step algorithms: ask for the size of its memory, then do it.
template <typename Algorithm>
void run_cub(const Tensor& like, const Algorithm& algorithm) {
  size_t bytes = 0;
  check_cuda("d2proj", algorithm(nullptr, bytes));
  const Scratch<char> memory(like, static_cast<int64_t>(bytes));
  check_cuda("d2proj", algorithm(memory.get(), bytes));
}

inline unsigned blocks_for(int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

template <typename K>
void sort_pairs(const Tensor& like, const K* keys, K* keys_out, const uint32_t* values, uint32_t* values_out,
                int64_t count, cudaStream_t stream) {
  run_cub(like, [&](void* memory, size_t& bytes) {  // radix sort is stable
    return cub::DeviceRadixSort::SortPairs(memory, bytes, keys, keys_out, values, values_out, count, 0,
                                           static_cast<int>(8 * sizeof(K)), stream);
  });
}

}  // namespace d2proj
