// RoIAlign on the CPU.
//
// The channels of a pixel are summed together, 64 bytes at a time. A channels-last map is read as it lies. Of a planar
// one, a task (one image, 16 channels) first turns the pixels that its boxes touch into a small channels-last buffer
// that stays in the cache; where boxes are so few that this would cost more than it saves, they are summed plane by
// plane. The backward pass is the same in mirror image. A task owns the part of the gradient that it adds to (an image,
// a band of rows, some channels) and takes boxes in order: no atomics, and the same bits whatever the number of
// threads.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>
#include <type_traits>

#include "common/simd.h"
#include "common/tensor.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace roi_align {
namespace {

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

// ---- forward ----

// Sums one box over kVectors * 64 bytes of channels; pixel (row, column) is at map + rows[row] + column * step. Bin b
// goes to out + b * out_step. `kTaps` is the number of taps of every bin along x, 0 if they differ or are many.
template <typename A, int kVectors, int kTaps>
D2_INLINE void pool_column(A* out, int64_t out_step, const A* map, const int64_t* rows, int64_t step,
                           const BoxTaps<A>& box, const Options& o, int64_t pw) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  const Tap<A>* x = box.taps + box.x_begin[pw];
  const int64_t x_count = kTaps ? kTaps : box.x_begin[pw + 1] - box.x_begin[pw];
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V{};
    for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
      const A* row = map + rows[box.taps[i].at];
      V line[kVectors];
      for (int v = 0; v < kVectors; ++v) line[v] = V{};
#pragma GCC unroll 4
      for (int64_t j = 0; j < x_count; ++j) {
        for (int v = 0; v < kVectors; ++v) {
          V pixel;
          simd::load(pixel, row + x[j].at * step + v * kLanes);
          line[v] += x[j].weight * pixel;
        }
      }
      for (int v = 0; v < kVectors; ++v) sum[v] += box.taps[i].weight * line[v];
    }
    for (int v = 0; v < kVectors; ++v) simd::store(out + (ph * o.pooled_w + pw) * out_step + v * kLanes, sum[v]);
  }
}

template <typename A, int kVectors>
D2_INLINE void pool_box(A* out, int64_t out_step, const A* map, const int64_t* rows, int64_t step,
                        const BoxTaps<A>& box, const Options& o) {
  for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
    switch (box.x_begin[pw + 1] - box.x_begin[pw]) {
      case 2:
        pool_column<A, kVectors, 2>(out, out_step, map, rows, step, box, o, pw);
        break;
      case 3:
        pool_column<A, kVectors, 3>(out, out_step, map, rows, step, box, o, pw);
        break;
      case 4:
        pool_column<A, kVectors, 4>(out, out_step, map, rows, step, box, o, pw);
        break;
      default:
        pool_column<A, kVectors, 0>(out, out_step, map, rows, step, box, o, pw);
    }
  }
}

// The same for one channel (or `count` channels that lie `lane_step` apart), any storage type, no buffer.
template <typename T, typename A>
D2_INLINE void pool_box_direct(Map<T> out, Map<const T> map, int64_t channels, const BoxTaps<A>& box,
                               const Options& o) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
      for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
        A sum = A(0);
        for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
          const T* row = map.data + c * map.c + box.taps[i].at * map.h;
          A line = A(0);
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            line += box.taps[j].weight * static_cast<A>(row[box.taps[j].at * map.w]);
          }
          sum += box.taps[i].weight * line;
        }
        out.data[c * out.c + ph * out.h + pw * out.w] = static_cast<T>(sum);
      }
    }
  }
}

// As above for channels that lie side by side: the channel loop is inside, where it vectorises.
template <typename T, typename A>
D2_INLINE void pool_box_last(Map<T> out, Map<const T> map, int64_t channels, const BoxTaps<A>& box, const Options& o) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
      for (int64_t c0 = 0; c0 < channels; c0 += kLanes) {
        const int64_t lanes = std::min(kLanes, channels - c0);
        A sum[kLanes] = {};
        for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
          const T* row = map.data + c0 + box.taps[i].at * map.h;
          A line[kLanes] = {};
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            const A weight = box.taps[j].weight;
            const T* pixel = row + box.taps[j].at * map.w;
            for (int64_t c = 0; c < lanes; ++c) line[c] += weight * static_cast<A>(pixel[c]);
          }
          const A weight = box.taps[i].weight;
          for (int64_t c = 0; c < lanes; ++c) sum[c] += weight * line[c];
        }
        T* to = out.data + c0 * out.c + ph * out.h + pw * out.w;
        for (int64_t c = 0; c < lanes; ++c) to[c * out.c] = static_cast<T>(sum[c]);
      }
    }
  }
}

template <typename T, typename A>
struct Forward {
  Map<const T> in;
  Map<T> out;
  int64_t channels;
  const Plan<A>& plan;
  const Options& o;
};

// Boxes of `job` (all of one image), channels [c0, c0 + count), through a compact buffer.
struct PackedForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, const ImageBoxes& job, const Footprint& foot, int64_t c0,
                            A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    const int64_t count = std::min(kLanes, f.channels - c0);
    const T* source = f.in.data + job.image * f.in.n + c0 * f.in.c;
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    int64_t* rows = reinterpret_cast<int64_t*>(tile + o.pooled_h * o.pooled_w * kLanes);
    for (int64_t y = 0; y < o.height; ++y) {
      rows[y] = foot.offsets()[y] * kLanes;
      if (foot.empty(y)) continue;
      const int64_t first = foot.first(y);
      simd::gather_lanes<L>(pixels + rows[y] + first * kLanes, source + y * f.in.h + first * f.in.w, f.in.c, f.in.w,
                            count, foot.last(y) - first);
    }
    for (const int64_t k : job.boxes) {
      pool_box<A, 1>(tile, kLanes, pixels, rows, kLanes, f.plan.box(k), o);
      T* to = f.out.data + k * f.out.n + c0 * f.out.c;
      // Bins follow each other in both memory formats that an output can have.
      simd::scatter_lanes<L>(to, tile, f.out.c, f.out.w, count, o.pooled_h * o.pooled_w);
    }
  }
};

// One box, every channel, read where the map lies.
struct DirectForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, int64_t k, int64_t image) {
    const BoxTaps<A> box = f.plan.box(k);
    Map<const T> in = f.in;
    Map<T> out = f.out;
    in.data += image * in.n;
    out.data += k * out.n;
    int64_t done = 0;
    if constexpr (std::is_same_v<T, A>) {
      if (in.c == 1 && out.c == 1) {
        constexpr int64_t kLanes = Wide<A>::kLanes;
        std::vector<int64_t> rows(f.o.height);
        for (int64_t y = 0; y < f.o.height; ++y) rows[y] = y * in.h;
        for (; done + 4 * kLanes <= f.channels; done += 4 * kLanes) {
          pool_box<A, 4>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, f.o);
        }
        for (; done + kLanes <= f.channels; done += kLanes) {
          pool_box<A, 1>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, f.o);
        }
      }
    }
    in.data += done * in.c;
    out.data += done * out.c;
    if (in.c == 1 && f.channels > 1) {
      pool_box_last(out, in, f.channels - done, box, f.o);
    } else {
      pool_box_direct(out, in, f.channels - done, box, f.o);
    }
  }
};

// Cuts the images' boxes into jobs, enough of them to occupy every thread: a job's result does not depend on the cut.
inline std::vector<ImageBoxes> cut_jobs(const std::vector<ImageBoxes>& images, int64_t blocks) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t used = 0;
  for (const ImageBoxes& image : images) used += !image.boxes.empty();
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, used * blocks));
  std::vector<ImageBoxes> jobs;
  for (const ImageBoxes& image : images) {
    const int64_t count = image.boxes.size();
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = count * p / parts, end = count * (p + 1) / parts;
      if (begin == end) continue;
      jobs.push_back({image.image, {image.boxes.begin() + begin, image.boxes.begin() + end}});
    }
  }
  return jobs;
}

template <typename T, typename A>
void forward(const Forward<T, A>& f, const std::vector<ImageBoxes>& images) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Options& o = f.o;
  const int64_t blocks = (f.channels + kLanes - 1) / kLanes;
  const bool as_it_lies = std::is_same_v<T, A> && f.in.c == 1;
  std::vector<ImageBoxes> packed;
  std::vector<Footprint> feet;
  std::vector<std::pair<int64_t, int64_t>> direct;  // (image, box)
  int64_t direct_taps = 0, most_pixels = 0;
  for (const ImageBoxes& image : images) {
    Footprint whole(o.height, o.width);
    for (const int64_t k : image.boxes) whole.add(f.plan.box(k), o);
    whole.lay_out(0, o.height);
    // Decided for an image as a whole, so that it does not depend on the number of threads.
    if (as_it_lies || whole.taps() < kReadsPerPixel * whole.pixels() || whole.pixels() > kMaxPixels) {
      for (const int64_t k : image.boxes) direct.emplace_back(image.image, k);
      direct_taps += whole.taps();
      continue;
    }
    for (ImageBoxes& job : cut_jobs({image}, blocks)) {
      Footprint foot(o.height, o.width);
      for (const int64_t k : job.boxes) foot.add(f.plan.box(k), o);
      foot.lay_out(0, o.height);
      most_pixels = std::max(most_pixels, foot.pixels());
      feet.push_back(std::move(foot));
      packed.push_back(std::move(job));
    }
  }
  const int64_t jobs = packed.size();
  const int64_t buffer_size = (most_pixels + o.pooled_h * o.pooled_w) * kLanes + (o.height * 8 + 63) / sizeof(A);
  torch::stable::parallel_for(0, jobs * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    for (int64_t i = begin; i < end; ++i) {
      simd::dispatch<PackedForward>(f, packed[i % jobs], feet[i % jobs], i / jobs * kLanes, buffer.get());
    }
  });
  const int64_t count = direct.size();
  const int64_t box_cost = std::max<int64_t>(1, direct_taps * f.channels / std::max<int64_t>(1, count));
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / box_cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) simd::dispatch<DirectForward>(f, direct[i].second, direct[i].first);
  });
}

// ---- backward ----

// Adds one box's gradient (bin b at grad + b * grad_step) to the rows [begin, end) of the map.
template <typename A, int kVectors>
D2_INLINE void spread_box(A* map, const int64_t* rows, int64_t step, int64_t begin, int64_t end, const A* grad,
                          int64_t grad_step, const BoxTaps<A>& box, const Options& o) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
      const int64_t y = box.taps[i].at;
      if (y < begin || y >= end) continue;
      A* row = map + rows[y];
      for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
        V share[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          simd::load(share[v], grad + (ph * o.pooled_w + pw) * grad_step + v * kLanes);
          share[v] *= box.taps[i].weight;
        }
        for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
          A* at = row + box.taps[j].at * step;
          for (int v = 0; v < kVectors; ++v) {
            V pixel;
            simd::load(pixel, at + v * kLanes);
            pixel += box.taps[j].weight * share[v];
            simd::store(at + v * kLanes, pixel);
          }
        }
      }
    }
  }
}

template <typename A>
D2_INLINE void spread_box_direct(Map<A> map, Map<const A> grad, int64_t channels, int64_t begin, int64_t end,
                                 const BoxTaps<A>& box, const Options& o) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
      for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
        const int64_t y = box.taps[i].at;
        if (y < begin || y >= end) continue;
        A* row = map.data + c * map.c + y * map.h;
        for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
          const A share = box.taps[i].weight * grad.data[c * grad.c + ph * grad.h + pw * grad.w];
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            row[box.taps[j].at * map.w] += box.taps[j].weight * share;
          }
        }
      }
    }
  }
}

// What a backward task owns: rows [begin, end) of an image, channels [c0, c0 + count).
struct Part {
  int64_t image, begin, end, c0, count;
};

template <typename T, typename A>
struct Backward {
  Map<const T> grad;
  Map<T> out;
  const Plan<A>& plan;
  const Options& o;
};

template <typename T>
D2_INLINE void zero_run(T* data, int64_t step, int64_t planes, int64_t plane_stride, int64_t count) {
  if (step == 1) {
    for (int64_t p = 0; p < planes; ++p) std::memset(static_cast<void*>(data + p * plane_stride), 0, count * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t p = 0; p < planes; ++p) data[p * plane_stride + i * step] = T(0.0f);
    }
  }
}

struct PackedBackward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Backward<T, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const Footprint& foot, A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    const int64_t bins = o.pooled_h * o.pooled_w;
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    int64_t* rows = reinterpret_cast<int64_t*>(tile + bins * kLanes);
    for (int64_t y = 0; y < o.height; ++y) rows[y] = foot.offsets()[y] * kLanes;
    std::memset(pixels, 0, foot.pixels() * kLanes * sizeof(A));
    for (const int64_t k : boxes) {
      const BoxTaps<A> box = f.plan.box(k);
      const T* grad = f.grad.data + k * f.grad.n + part.c0 * f.grad.c;
      if (f.grad.h == f.grad.w * o.pooled_w) {
        simd::gather_lanes<L>(tile, grad, f.grad.c, f.grad.w, part.count, bins);
      } else {
        for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
          simd::gather_lanes<L>(tile + ph * o.pooled_w * kLanes, grad + ph * f.grad.h, f.grad.c, f.grad.w, part.count,
                                o.pooled_w);
        }
      }
      spread_box<A, 1>(pixels, rows, kLanes, part.begin, part.end, tile, kLanes, box, o);
    }
    T* out = f.out.data + part.image * f.out.n + part.c0 * f.out.c;
    for (int64_t y = part.begin; y < part.end; ++y) {
      T* row = out + y * f.out.h;
      const int64_t first = foot.empty(y) ? o.width : foot.first(y), last = foot.empty(y) ? o.width : foot.last(y);
      zero_run(row, f.out.w, part.count, f.out.c, first);
      if (first < last) {
        simd::scatter_lanes<L>(row + first * f.out.w, pixels + rows[y] + first * kLanes, f.out.c, f.out.w, part.count,
                               last - first);
      }
      zero_run(row + last * f.out.w, f.out.w, part.count, f.out.c, o.width - last);
    }
  }
};

struct DirectBackward {
  template <Level L, typename A>
  static D2_INLINE void run(const Backward<A, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            int64_t* rows) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    Map<A> out = f.out;
    out.data += part.image * out.n + part.c0 * out.c;
    for (int64_t y = 0; y < o.height; ++y) rows[y] = y * out.h;
    for (int64_t y = part.begin; y < part.end; ++y) zero_run(out.data + y * out.h, out.w, part.count, out.c, o.width);
    for (const int64_t k : boxes) {
      const BoxTaps<A> box = f.plan.box(k);
      Map<const A> grad = f.grad;
      grad.data += k * grad.n + part.c0 * grad.c;
      int64_t done = 0;
      if (out.c == 1 && grad.c == 1 && grad.h == grad.w * o.pooled_w) {
        for (; done + 4 * kLanes <= part.count; done += 4 * kLanes) {
          spread_box<A, 4>(out.data + done, rows, out.w, part.begin, part.end, grad.data + done, grad.w, box, o);
        }
        for (; done + kLanes <= part.count; done += kLanes) {
          spread_box<A, 1>(out.data + done, rows, out.w, part.begin, part.end, grad.data + done, grad.w, box, o);
        }
      }
      Map<A> rest = out;
      rest.data += done * out.c;
      grad.data += done * grad.c;
      spread_box_direct<A>(rest, grad, part.count - done, part.begin, part.end, box, o);
    }
  }
};

template <typename T, typename A>
void backward(const Backward<T, A>& f, const std::vector<ImageBoxes>& images, int64_t channels) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Options& o = f.o;
  const bool as_it_lies = std::is_same_v<T, A> && f.out.c == 1 && f.grad.c == 1;
  const int64_t block = as_it_lies ? 4 * kLanes : kLanes;  // channels of a task
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t count = images.size();
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  // Bands of rows when images and channels alone do not occupy the threads.
  const int64_t bands = std::max<int64_t>(1, std::min(o.height, wanted / std::max<int64_t>(1, count * blocks)));
  std::vector<Footprint> feet;
  std::vector<char> packed(count);
  int64_t most_pixels = 0, work = 0;
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t b = 0; b < bands; ++b) {
      Footprint foot(o.height, o.width);
      for (const int64_t k : images[n].boxes) foot.add(f.plan.box(k), o);
      if (b == 0) {
        Footprint whole = foot;
        whole.lay_out(0, o.height);
        packed[n] = !std::is_same_v<T, A> ||
                    (!as_it_lies && whole.taps() >= kReadsPerPixel * whole.pixels() && whole.pixels() <= kMaxPixels);
        work += whole.taps() * channels;
      }
      foot.lay_out(o.height * b / bands, o.height * (b + 1) / bands);
      if (packed[n]) most_pixels = std::max(most_pixels, foot.pixels());
      feet.push_back(std::move(foot));
    }
  }
  const int64_t tasks = count * bands * blocks;
  const int64_t task_cost =
      std::max<int64_t>(1, (work + channels * count * o.height * o.width / 8) / std::max<int64_t>(1, tasks));
  const int64_t buffer_size = (most_pixels + o.pooled_h * o.pooled_w) * kLanes + (o.height * 8 + 63) / sizeof(A);
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / task_cost), [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % (count * bands) / bands, b = i % bands, c0 = i / (count * bands) * block;
      const Part part{n, o.height * b / bands, o.height * (b + 1) / bands, c0, std::min(block, channels - c0)};
      if (packed[n]) {
        simd::dispatch<PackedBackward>(f, part, images[n].boxes, feet[n * bands + b], buffer.get());
      } else if constexpr (std::is_same_v<T, A>) {
        simd::dispatch<DirectBackward>(f, part, images[n].boxes, reinterpret_cast<int64_t*>(buffer.get()));
      }
    }
  });
}

// ---- entry points ----

template <typename A>
Tensor boxes_as(const Tensor& boxes) {
  const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(boxes.scalar_type() == type ? boxes : torch::stable::to(boxes, type));
}

void check_arguments(const char* op, const Tensor& boxes, int64_t pooled_h, int64_t pooled_w) {
  check_dim(op, "boxes", boxes, 2, "(K, 5)");
  check(boxes.size(1) == 5, op, "boxes must have shape (K, 5), got ", shape_of(boxes));
  check_box_dtype(op, "boxes", boxes);
  check(pooled_h > 0 && pooled_w > 0, op, "output_size must be positive, got (", pooled_h, ", ", pooled_w, ")");
}

Tensor forward_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kOp = "roi_align";
  check_dim(kOp, "input", input, 4, "(N, C, H, W)");
  check_floating(kOp, "input", input);
  check_same_device(kOp, "input", input, "boxes", boxes);
  check_arguments(kOp, boxes, pooled_height, pooled_width);
  const int64_t channels = input.size(1);
  const Options o{pooled_height, pooled_width, input.size(2), input.size(3), spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(input, boxes.size(0), channels, pooled_height, pooled_width, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  advise_huge_pages(out);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(kOp, data, rois.size(0), input.size(0));
    const Plan<A> plan(data, rois.size(0), o);
    forward<T, A>({read_map<T>(input), write_map<T>(out), channels, plan, o}, images);
  });
  return out;
}

Tensor backward_cpu(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                    int64_t sampling_ratio, bool aligned, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_roi_align_backward";
  check_dim(kOp, "grad", grad, 4, "(K, C, height, width)");
  check_floating(kOp, "grad", grad);
  check_same_device(kOp, "grad", grad, "boxes", boxes);
  check_arguments(kOp, boxes, pooled_height, pooled_width);
  check(grad.size(0) == boxes.size(0) && grad.size(1) == channels && grad.size(2) == pooled_height &&
            grad.size(3) == pooled_width,
        kOp, "grad must have shape (", boxes.size(0), ", ", channels, ", ", pooled_height, ", ", pooled_width,
        "), got ", shape_of(grad));
  const Options o{pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(kOp, data, rois.size(0), batch_size);
    const Plan<A> plan(data, rois.size(0), o);
    backward<T, A>({read_map<T>(grad), write_map<T>(out), plan, o}, images, channels);
  });
  return out;
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&d2proj::roi_align::forward_cpu));
  m.impl("_roi_align_backward", TORCH_BOX(&d2proj::roi_align::backward_cpu));
}
