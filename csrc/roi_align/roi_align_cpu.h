// What the forward and the backward pass on the CPU share.
//
// The channels of a pixel are summed together, 64 bytes at a time. A channels-last map is read as it lies. Of a planar
// one, a task (one image, 16 channels) first turns the pixels that its boxes touch into a small channels-last buffer
// that stays in the cache; where boxes are so few that this would cost more than it saves, they are summed plane by
// plane. The backward pass is the same in mirror image.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>
#include <type_traits>
#include <vector>

#include "common/simd.h"
#include "common/tensor.h"
#include "roi_align/roi_align_args.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace roi_align {

using simd::Level;
using simd::Wide;

// A compact buffer is worth its making when boxes read a pixel of it this often, on average.
constexpr double kReadsPerPixel = 0.4;
// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 262144;

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

// The boxes of one image, in order.
struct ImageBoxes {
  int64_t image;
  std::vector<int64_t> boxes;
};

template <typename A>
std::vector<ImageBoxes> group_by_image(const char* op, const A* boxes, int64_t count, int64_t images) {
  std::vector<ImageBoxes> groups(images);
  for (int64_t n = 0; n < images; ++n) groups[n].image = n;
  for (int64_t k = 0; k < count; ++k) {
    const A index = boxes[k * 5];
    check(index >= A(0) && index < static_cast<A>(images), op, "boxes[", k, ", 0] must be an image index from 0 to ",
          images - 1, ", got ", index);
    groups[static_cast<int64_t>(index)].boxes.push_back(k);
  }
  return groups;
}

template <typename A>
Tensor boxes_as(const Tensor& boxes) {
  const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(boxes.scalar_type() == type ? boxes : torch::stable::to(boxes, type));
}

}  // namespace roi_align
}  // namespace d2proj
