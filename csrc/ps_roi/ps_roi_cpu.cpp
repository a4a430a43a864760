// ps_roi_pool and ps_roi_align on the CPU, forward and backward.
//
// Both are weighted sums that separate by axis, so both are a plan (roi_align's: the pixels of every bin and their
// weights) and one kernel. All channels of the result read the same pixels of a bin, each in a plane of its own: a task
// (an image, a bin, 64 bytes of channels) turns what the boxes read of these planes into a compact channels-last buffer
// and sums many channels at once; where that would cost more than it saves, sums go plane by plane. The backward pass
// is the same in mirror image; a task owns the planes that it adds to and takes boxes in order: no atomics, and the
// same bits whatever the number of threads.
#include "common/map.h"
#include "common/rois.h"
#include "common/simd.h"
#include "ps_roi/ps_roi_args.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace ps_roi {
namespace {

using roi_align::BoxTaps;
using roi_align::Tap;
using simd::Level;
using simd::Wide;

// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 262144;

// ps_roi_pool as taps: equal weights whose sum is one.
template <typename A>
class PoolPlan {
 public:
  PoolPlan(const A* boxes, int64_t count, const Options& o) : begins_per_box_(o.pooled_h + o.pooled_w + 2) {
    const A scale = static_cast<A>(o.spatial_scale);
    begins_.reserve(count * begins_per_box_);
    for (int64_t k = 0; k < count; ++k) {
      const A* box = boxes + k * 5;
      auto y = make_pool_axis<A>(box[2], box[4], scale, o.pooled_h);
      auto x = make_pool_axis<A>(box[1], box[3], scale, o.pooled_w);
      y.valid = x.valid = y.valid && x.valid;
      add_axis(y, o.pooled_h, o.height);
      add_axis(x, o.pooled_w, o.width);
    }
    pooled_h_ = o.pooled_h;
  }

  BoxTaps<A> box(int64_t k) const {
    const int64_t* begins = begins_.data() + k * begins_per_box_;
    return {taps_.data(), begins, begins + pooled_h_ + 1};
  }

 private:
  void add_axis(const roi_pool::Axis<A>& axis, int64_t pooled, int64_t size) {
    begins_.push_back(static_cast<int64_t>(taps_.size()));
    for (int64_t b = 0; b < pooled; ++b) {
      const roi_pool::Span span = pool_span(axis, b, size);
      for (int32_t at = span.begin; at < span.end; ++at) taps_.push_back({at, A(1) / static_cast<A>(span.count())});
      begins_.push_back(static_cast<int64_t>(taps_.size()));
    }
  }

  int64_t begins_per_box_, pooled_h_;
  std::vector<Tap<A>> taps_;
  std::vector<int64_t> begins_;
};

// The taps of one bin of a box.
template <typename A>
struct BinTaps {
  const Tap<A>*y, *y_end, *x, *x_end;
};

template <typename A>
BinTaps<A> bin_taps(const BoxTaps<A>& box, int64_t bin, int64_t pooled_w) {
  const int64_t ph = bin / pooled_w, pw = bin % pooled_w;
  return {box.taps + box.y_begin[ph], box.taps + box.y_begin[ph + 1], box.taps + box.x_begin[pw],
          box.taps + box.x_begin[pw + 1]};
}

// An image, a bin, channels [c0, c0 + count) of the result.
struct Part {
  int64_t image, bin, c0, count;
};

// The pixels [begin, end) along either axis that one bin of some boxes reads.
struct Range {
  int64_t begin = std::numeric_limits<int64_t>::max(), end = 0;

  // Taps of an inverted box run backwards.
  template <typename A>
  void add(const Tap<A>* first, const Tap<A>* last) {
    for (; first < last; ++first) {
      begin = std::min(begin, first->at);
      end = std::max(end, first->at + 1);
    }
  }
  int64_t count() const { return std::max<int64_t>(0, end - begin); }
};

// The rectangle of a plane that a compact buffer of 64 bytes a pixel holds.
struct Window {
  Range y, x;

  int64_t pixels() const { return y.count() * x.count(); }

  template <typename A>
  D2_INLINE A* at(A* pixels, int64_t row, int64_t column) const {
    return pixels + ((row - y.begin) * x.count() + column - x.begin) * Wide<A>::kLanes;
  }
};

template <typename T, typename A, typename Boxes>
struct Problem {
  Map<const T> from;  // forward: the map; backward: the gradient of the result
  Map<T> to;          // forward: the result; backward: the gradient of the map
  const Boxes& plan;
  const Options& o;
  int64_t channels;  // of the result
  int64_t bins() const { return o.pooled_h * o.pooled_w; }
};

struct PackedForward {
  template <Level L, typename T, typename A, typename Boxes>
  static D2_INLINE void run(const Problem<T, A, Boxes>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const Window& window, A* pixels) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const T* source = f.from.data + part.image * f.from.n + channel_of(part.c0, part.bin, f.bins()) * f.from.c;
    for (int64_t y = window.y.begin; y < window.y.end; ++y) {
      simd::gather_lanes<L>(window.at(pixels, y, window.x.begin), source + y * f.from.h + window.x.begin,
                            f.bins() * f.from.c, int64_t(1), part.count, window.x.count());
    }
    const int64_t ph = part.bin / f.o.pooled_w, pw = part.bin % f.o.pooled_w;
    for (const int64_t k : boxes) {
      const BinTaps<A> taps = bin_taps(f.plan.box(k), part.bin, f.o.pooled_w);
      V sum = {};
      for (const Tap<A>* y = taps.y; y < taps.y_end; ++y) {
        const A* row = window.at(pixels, y->at, 0);
        V line = {};
        for (const Tap<A>* x = taps.x; x < taps.x_end; ++x) {
          V pixel;
          simd::load(pixel, row + x->at * kLanes);
          line += x->weight * pixel;
        }
        sum += y->weight * line;
      }
      T* out = f.to.data + k * f.to.n + part.c0 * f.to.c + ph * f.to.h + pw * f.to.w;
      A lanes[kLanes];
      simd::store(lanes, sum);
      for (int64_t c = 0; c < part.count; ++c) out[c * f.to.c] = static_cast<T>(lanes[c]);
    }
  }
};

struct DirectForward {
  template <Level L, typename T, typename A, typename Boxes>
  static D2_INLINE void run(const Problem<T, A, Boxes>& f, int64_t image, int64_t k) {
    const BoxTaps<A> box = f.plan.box(k);
    for (int64_t c = 0; c < f.channels; ++c) {
      const T* map = f.from.data + image * f.from.n + channel_of(c, 0, f.bins()) * f.from.c;
      T* out = f.to.data + k * f.to.n + c * f.to.c;
      for (int64_t ph = 0; ph < f.o.pooled_h; ++ph) {
        for (int64_t pw = 0; pw < f.o.pooled_w; ++pw, map += f.from.c) {
          A sum = A(0);
          for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
            const T* row = map + box.taps[i].at * f.from.h;
            A line = A(0);
            for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
              line += box.taps[j].weight * static_cast<A>(row[box.taps[j].at]);
            }
            sum += box.taps[i].weight * line;
          }
          out[ph * f.to.h + pw * f.to.w] = static_cast<T>(sum);
        }
      }
    }
  }
};

struct PackedBackward {
  template <Level L, typename T, typename A, typename Boxes>
  static D2_INLINE void run(const Problem<T, A, Boxes>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const Window& window, A* pixels) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    std::memset(pixels, 0, window.pixels() * kLanes * sizeof(A));
    const int64_t ph = part.bin / f.o.pooled_w, pw = part.bin % f.o.pooled_w;
    for (const int64_t k : boxes) {
      const BinTaps<A> taps = bin_taps(f.plan.box(k), part.bin, f.o.pooled_w);
      if (taps.y == taps.y_end || taps.x == taps.x_end) continue;
      const T* grad = f.from.data + k * f.from.n + part.c0 * f.from.c + ph * f.from.h + pw * f.from.w;
      A lanes[kLanes] = {};
      for (int64_t c = 0; c < part.count; ++c) lanes[c] = static_cast<A>(grad[c * f.from.c]);
      V share;
      simd::load(share, lanes);
      for (const Tap<A>* y = taps.y; y < taps.y_end; ++y) {
        A* row = window.at(pixels, y->at, 0);
        const V line = y->weight * share;
        for (const Tap<A>* x = taps.x; x < taps.x_end; ++x) {
          V pixel;
          simd::load(pixel, row + x->at * kLanes);
          pixel += x->weight * line;
          simd::store(row + x->at * kLanes, pixel);
        }
      }
    }
    T* out = f.to.data + part.image * f.to.n + channel_of(part.c0, part.bin, f.bins()) * f.to.c;
    const int64_t plane = f.bins() * f.to.c;
    const Range& x = window.x;
    for (int64_t y = 0; y < f.o.height; ++y) {
      T* row = out + y * f.to.h;
      if (y < window.y.begin || y >= window.y.end || x.count() == 0) {
        for (int64_t p = 0; p < part.count; ++p) zero(row + p * plane, f.o.width);
        continue;
      }
      for (int64_t p = 0; p < part.count; ++p) {
        zero(row + p * plane, x.begin);
        zero(row + p * plane + x.end, f.o.width - x.end);
      }
      simd::scatter_lanes<L>(row + x.begin, window.at(pixels, y, x.begin), plane, int64_t(1), part.count, x.count());
    }
  }

  template <typename T>
  static void zero(T* data, int64_t count) {
    std::memset(static_cast<void*>(data), 0, count * sizeof(T));
  }
};

// Plane by plane, where sums need no wider type than the map's.
struct DirectBackward {
  template <Level L, typename A, typename Boxes>
  static D2_INLINE void run(const Problem<A, A, Boxes>& f, const Part& part, const std::vector<int64_t>& boxes) {
    const int64_t ph = part.bin / f.o.pooled_w, pw = part.bin % f.o.pooled_w;
    for (int64_t c = part.c0; c < part.c0 + part.count; ++c) {
      A* map = f.to.data + part.image * f.to.n + channel_of(c, part.bin, f.bins()) * f.to.c;
      std::memset(map, 0, f.o.height * f.o.width * sizeof(A));
      for (const int64_t k : boxes) {
        const BinTaps<A> taps = bin_taps(f.plan.box(k), part.bin, f.o.pooled_w);
        const A share = f.from.data[k * f.from.n + c * f.from.c + ph * f.from.h + pw * f.from.w];
        for (const Tap<A>* y = taps.y; y < taps.y_end; ++y) {
          A* row = map + y->at * f.to.h;
          const A line = y->weight * share;
          for (const Tap<A>* x = taps.x; x < taps.x_end; ++x) row[x->at] += x->weight * line;
        }
      }
    }
  }
};

// Everything about an image that its tasks share.
struct Image {
  int64_t image;
  const std::vector<int64_t>* boxes;
  std::vector<Range> y, x;  // of each row and each column of bins
  bool packed;

  Window window(int64_t bin) const { return {y[bin / x.size()], x[bin % x.size()]}; }
};

template <typename T, typename A, typename Boxes>
void run(const Problem<T, A, Boxes>& f, const std::vector<ImageBoxes>& groups, bool backward) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const int64_t bins = f.bins();
  const int64_t planes = std::min<int64_t>(kLanes, f.channels);
  std::vector<Image> images;
  int64_t most_pixels = 0, taps = 0;
  for (const ImageBoxes& group : groups) {
    if (group.boxes.empty() && !backward) continue;
    Image image{group.image, &group.boxes, std::vector<Range>(f.o.pooled_h), std::vector<Range>(f.o.pooled_w), false};
    int64_t image_taps = 0, pixels = 0, most = 0;
    for (const int64_t k : group.boxes) {
      const BoxTaps<A> box = f.plan.box(k);
      for (int64_t b = 0; b < f.o.pooled_h; ++b) {
        image.y[b].add(box.taps + box.y_begin[b], box.taps + box.y_begin[b + 1]);
      }
      for (int64_t b = 0; b < f.o.pooled_w; ++b) {
        image.x[b].add(box.taps + box.x_begin[b], box.taps + box.x_begin[b + 1]);
      }
      image_taps += (box.y_begin[f.o.pooled_h] - box.y_begin[0]) * (box.x_begin[f.o.pooled_w] - box.x_begin[0]);
    }
    for (Range& x : image.x) {
      // Whole vectors of eight pixels where the map allows it.
      if (x.count() == 0) x = {0, 0};
      x.end = std::min(f.o.width, x.begin + (x.count() + 7) / 8 * 8);
      x.begin = std::max<int64_t>(0, x.end - (x.count() + 7) / 8 * 8);
    }
    for (Range& y : image.y) {
      if (y.count() == 0) y = {0, 0};
    }
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int64_t count = image.window(bin).pixels();
      pixels += count;
      most = std::max(most, count);
    }
    // Turning a pixel costs about two sums of a tap, and saves those of all channels but one. Decided for an image as a
    // whole, so that it does not depend on the number of threads.
    image.packed =
        (backward && !std::is_same_v<T, A>) || (image_taps * (planes - 1) > 2 * pixels && most <= kMaxPixels);
    if (image.packed) most_pixels = std::max(most_pixels, most);
    taps += image_taps;
    images.push_back(std::move(image));
  }
  const int64_t blocks = (f.channels + kLanes - 1) / kLanes;
  const int64_t per_image = bins * blocks;
  const int64_t tasks = per_image * images.size();
  const int64_t fill = backward ? f.o.height * f.o.width / 4 : 0;
  const int64_t cost = tasks ? 1 + taps * f.channels / tasks + fill * planes : 1;
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
    const auto pixels = aligned_buffer<A>(most_pixels * kLanes);
    for (int64_t i = begin; i < end; ++i) {
      const Image& image = images[i / per_image];
      const int64_t bin = i % bins, c0 = i % per_image / bins * kLanes;
      const Part part{image.image, bin, c0, std::min(kLanes, f.channels - c0)};
      if (image.packed && backward) {
        simd::dispatch<PackedBackward>(f, part, *image.boxes, image.window(bin), pixels.get());
      } else if (image.packed) {
        simd::dispatch<PackedForward>(f, part, *image.boxes, image.window(bin), pixels.get());
      } else if (backward) {
        if constexpr (std::is_same_v<T, A>) simd::dispatch<DirectBackward>(f, part, *image.boxes);
      }
    }
  });
  if (backward) return;
  std::vector<std::pair<int64_t, int64_t>> direct;  // (image, box)
  for (const Image& image : images) {
    if (image.packed) continue;
    for (const int64_t k : *image.boxes) direct.emplace_back(image.image, k);
  }
  const int64_t count = direct.size();
  const int64_t box_cost = count ? 1 + taps * f.channels / count : 1;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / box_cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) simd::dispatch<DirectForward>(f, direct[i].first, direct[i].second);
  });
}

// Calls `body(T{}, A{}, plan, images)` with the op's plan of the boxes.
template <bool kAlign, typename Body>
void with_plan(const char* op, ScalarType type, const Tensor& boxes, int64_t batch_size, const Options& o,
               const Body& body) {
  dispatch_floating(type, [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(op, data, rois.size(0), batch_size);
    if constexpr (kAlign) {
      const roi_align::Options align{o.pooled_h,      o.pooled_w,       o.height, o.width,
                                     o.spatial_scale, o.sampling_ratio, true};
      std::vector<roi_align::View> views(rois.size(0));
      for (size_t k = 0; k < views.size(); ++k) views[k] = {static_cast<int64_t>(k), 0};
      body(T{}, A{}, roi_align::Plan<A>(data, views, {align}), images);
    } else {
      body(T{}, A{}, PoolPlan<A>(data, rois.size(0), o), images);
    }
  });
}

template <bool kAlign>
Tensor forward(const char* op, const Tensor& input, const Tensor& boxes, Options o) {
  check_forward(op, input, boxes, o.pooled_h, o.pooled_w);
  o.height = input.size(2);
  o.width = input.size(3);
  const int64_t channels = input.size(1) / (o.pooled_h * o.pooled_w);
  Tensor out = empty_4d(input, boxes.size(0), channels, o.pooled_h, o.pooled_w, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  // The channels of a bin never lie side by side: a map that is not planar is made so.
  const Tensor planar = roi_pool::in_format(input, MemoryFormat::Contiguous);
  with_plan<kAlign>(op, input.scalar_type(), boxes, input.size(0), o,
                    [&](auto t, auto a, const auto& plan, const auto& images) {
                      using T = decltype(t);
                      using A = decltype(a);
                      using Boxes = std::decay_t<decltype(plan)>;
                      const Problem<T, A, Boxes> f{read_map<T>(planar), write_map<T>(out), plan, o, channels};
                      run(f, images, false);
                    });
  return out;
}

template <bool kAlign>
Tensor backward(const char* op, const Tensor& grad, const Tensor& boxes, const Options& o, int64_t batch_size,
                int64_t channels, bool channels_last) {
  check_backward(op, grad, boxes, channels, o.height, o.width, o.pooled_h, o.pooled_w);
  Tensor out = empty_4d(grad, batch_size, channels, o.height, o.width, false);
  if (out.numel() == 0 || grad.numel() == 0) {
    torch::stable::zero_(out);
  } else {
    advise_huge_pages(out);
    with_plan<kAlign>(op, grad.scalar_type(), boxes, batch_size, o,
                      [&](auto t, auto a, const auto& plan, const auto& images) {
                        using T = decltype(t);
                        using A = decltype(a);
                        using Boxes = std::decay_t<decltype(plan)>;
                        const Problem<T, A, Boxes> f{read_map<T>(grad), write_map<T>(out), plan, o, grad.size(1)};
                        run(f, images, true);
                      });
  }
  return channels_last ? torch::stable::contiguous(out, MemoryFormat::ChannelsLast) : out;
}

Tensor pool_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                int64_t pooled_width) {
  return forward<false>("ps_roi_pool", input, boxes, {pooled_height, pooled_width, 0, 0, spatial_scale, 0});
}

Tensor pool_backward_cpu(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                         int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                         bool channels_last, bool /*deterministic: always*/) {
  return backward<false>("_ps_roi_pool_backward", grad, boxes,
                         {pooled_height, pooled_width, height, width, spatial_scale, 0}, batch_size, channels,
                         channels_last);
}

Tensor align_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                 int64_t pooled_width, int64_t sampling_ratio) {
  return forward<true>("ps_roi_align", input, boxes,
                       {pooled_height, pooled_width, 0, 0, spatial_scale, sampling_ratio});
}

Tensor align_backward_cpu(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                          int64_t sampling_ratio, bool channels_last, bool /*deterministic: always*/) {
  return backward<true>("_ps_roi_align_backward", grad, boxes,
                        {pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio}, batch_size,
                        channels, channels_last);
}

}  // namespace
}  // namespace ps_roi
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&d2proj::ps_roi::pool_cpu));
  m.impl("_ps_roi_pool_backward", TORCH_BOX(&d2proj::ps_roi::pool_backward_cpu));
  m.impl("ps_roi_align", TORCH_BOX(&d2proj::ps_roi::align_cpu));
  m.impl("_ps_roi_align_backward", TORCH_BOX(&d2proj::ps_roi::align_backward_cpu));
}
