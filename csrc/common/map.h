// Maps in memory for CPU kernels: strided views of 4-D tensors, aligned scratch memory.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/tensor.h"

namespace d2proj {

template <typename T>
struct Map {  // a 4-D tensor's data and strides, in elements
  T* data;
  int64_t n, c, h, w;
};

template <typename T>
Map<const T> read_map(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}
template <typename T>
Map<T> write_map(Tensor& t) {
  return {static_cast<T*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct AlignedFree {
  void operator()(void* pointer) const { std::free(pointer); }
};
template <typename A>
std::unique_ptr<A[], AlignedFree> aligned_buffer(int64_t elements) {
  void* pointer = nullptr;
  if (posix_memalign(&pointer, 64, std::max<int64_t>(elements, 1) * sizeof(A))) throw std::bad_alloc();
  return std::unique_ptr<A[], AlignedFree>(static_cast<A*>(pointer));
}

// A large fresh tensor costs more in page faults (4 kB at a time) than in writing; huge pages, where the system grants
// them, make them few. Advice only: without it, or refused, nothing but time changes.
inline void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + tensor.numel() * tensor.element_size()) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace d2proj
