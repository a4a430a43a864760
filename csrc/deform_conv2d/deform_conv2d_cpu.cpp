// Deformable convolution on the CPU; deform_conv2d_cpu.h says how.
#include "deform_conv2d/deform_conv2d_cpu.h"

namespace d2proj {
namespace deform_conv2d {
namespace {

// The weights of 64 bytes of output channels: [tap][packed channel of `channels`][lane] from `data` on.
struct Panel {
  Range channels;
  int64_t data;
};

template <typename A>
std::vector<Panel> make_panels(const Layout<A>& layout) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Shape& s = layout.s;
  std::vector<Panel> panels;
  int64_t data = 0;
  for (int64_t o = 0; o < s.out_channels; o += kLanes) {
    const int64_t last_output = std::min(o + kLanes, s.out_channels) - 1;
    const int64_t first = o / s.group_outputs() * s.group_channels();
    const int64_t last = (last_output / s.group_outputs() + 1) * s.group_channels() - 1;
    panels.push_back({{layout.at(first), layout.at(last) + 1}, data});
    data += s.taps() * panels.back().channels.size() * kLanes;
  }
  panels.push_back({{0, 0}, data});  // its data is where the last ends
  return panels;
}

struct PackWeights {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(A* packed, const T* weight, const Layout<A>& layout, const Panel& panel, int64_t o,
                            A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = layout.s;
    const int64_t lanes = std::min(kLanes, s.out_channels - o), depth = s.group_channels() * s.taps();
    A* to = packed + panel.data;
    const int64_t size = panel.channels.size();
    const int64_t group = o / s.group_outputs();
    if ((o + lanes - 1) / s.group_outputs() == group) {
      // One group: turned as a whole, then its rows (channel, tap) put at (tap, channel).
      if (size != s.group_channels()) std::fill_n(to, s.taps() * size * kLanes, A(0));
      simd::gather_lanes<L>(buffer, weight + o * depth, depth, 1, lanes, depth);
      for (int64_t c = 0; c < s.group_channels(); ++c) {
        const int64_t at = layout.at(group * s.group_channels() + c) - panel.channels.begin;
        for (int64_t t = 0; t < s.taps(); ++t) {
          typename Wide<A>::type row;
          simd::load(row, buffer + (c * s.taps() + t) * kLanes);
          simd::store(to + (t * size + at) * kLanes, row);
        }
      }
      return;
    }
    std::fill_n(to, s.taps() * size * kLanes, A(0));
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t first = (o + l) / s.group_outputs() * s.group_channels();
      for (int64_t c = 0; c < s.group_channels(); ++c) {
        const int64_t at = layout.at(first + c) - panel.channels.begin;
        for (int64_t t = 0; t < s.taps(); ++t) {
          to[(t * size + at) * kLanes + l] = static_cast<A>(weight[(o + l) * depth + c * s.taps() + t]);
        }
      }
    }
  }
};

template <typename T, typename A>
struct Forward {
  const Layout<A>& layout;
  const Offsets<A>& offsets;
  const A* packed;  // images
  int64_t first_image, zero_pixel;
  const std::vector<Panel>& panels;
  const A* weights;
  const T* bias;  // or null
  Map<T> out;
  int64_t taps_at_once, rows;  // of the column buffer
};

struct Convolve {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, const Chunk& chunk, A* columns, A* sums) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = f.layout.s;
    const int64_t panels = static_cast<int64_t>(f.panels.size()) - 1;
    const int64_t image = f.first_image + chunk.image;
    for (int64_t j = 0; j < panels; ++j) {
      typename Wide<A>::type start = {};
      for (int64_t l = 0; f.bias && l < std::min(kLanes, s.out_channels - j * kLanes); ++l) {
        start[l] = static_cast<A>(f.bias[j * kLanes + l]);
      }
      for (int64_t p = 0; p < chunk.count; ++p) simd::store(sums + (j * f.rows + p) * kLanes, start);
    }
    for (int64_t first = 0; first < s.taps(); first += f.taps_at_once) {
      const int64_t taps = std::min(f.taps_at_once, s.taps() - first);
      const int64_t pitch = taps * f.layout.channels;
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t g = 0; g < s.offset_groups; ++g) {
          for (int64_t p = 0; p < chunk.count; ++p) {
            const Corners<A> corners =
                corners_of(s, f.offsets, image, chunk.image, g, first + t, chunk.begin + p, f.zero_pixel);
            sample(columns + p * pitch + t * f.layout.channels + g * f.layout.group, kLanes,
                   f.packed + g * f.layout.group, f.layout.channels, corners, f.layout.group / kLanes);
          }
        }
      }
      for (int64_t j = 0; j < panels;) {
        // Two panels at once where both read the same channels.
        const Range range = f.panels[j].channels;
        const bool two = j + 1 < panels && f.panels[j + 1].channels.begin == range.begin &&
                         f.panels[j + 1].channels.end == range.end;
        const Product<A> product{sums + j * f.rows * kLanes,
                                 kLanes,
                                 f.rows * kLanes,
                                 columns + range.begin,
                                 pitch,
                                 1,
                                 f.layout.channels,
                                 f.weights + f.panels[j].data + first * range.size() * kLanes,
                                 s.taps() * range.size() * kLanes,
                                 taps,
                                 range.size(),
                                 true};
        multiply<L>(product, chunk.count, two ? 2 : 1);
        j += two ? 2 : 1;
      }
    }
    for (int64_t j = 0; j < panels; ++j) {
      // The result is dense in either layout, so its rows follow each other.
      T* to = f.out.data + image * f.out.n + j * kLanes * f.out.c + chunk.begin * f.out.w;
      simd::scatter_lanes<L>(to, sums + j * f.rows * kLanes, f.out.c, f.out.w,
                             std::min(kLanes, s.out_channels - j * kLanes), chunk.count);
    }
  }
};

template <typename T, typename A>
void forward(const Shape& s, const Tensor& input, const Tensor& weight, const Tensor& offset,
             const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, Tensor& out) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  constexpr int64_t kSize = sizeof(A);
  const Layout<A> layout(s);
  const std::vector<Panel> panels = make_panels(layout);
  const int64_t panel_count = static_cast<int64_t>(panels.size()) - 1;
  const auto weights = aligned_buffer<A>(panels.back().data);
  const T* from = static_cast<const T*>(weight.const_data_ptr());
  const int64_t depth = s.group_channels() * s.taps();
  for_tasks(panel_count, 2 * panels[0].channels.size() * s.taps() * kLanes, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(depth * kLanes);
    for (int64_t j = begin; j < end; ++j) {
      simd::dispatch<PackWeights>(weights.get(), from, layout, panels[j], j * kLanes, buffer.get());
    }
  });

  const int64_t at_once = layout.images_at_once();
  const auto packed = aligned_buffer<A>((at_once * s.pixels() + 1) * layout.channels);
  const int64_t most_rows = std::max(kTileRows, kColumnBytes / (layout.channels * kSize) / kTileRows * kTileRows);
  const int64_t pixels = std::min({kChunk, most_rows, s.out_pixels()});
  const int64_t rows = padded_rows(pixels);
  const int64_t taps_at_once =
      std::max<int64_t>(1, std::min(s.taps(), kColumnBytes / (rows * layout.channels * kSize)));
  const int64_t chunks = (s.out_pixels() + pixels - 1) / pixels;
  const Offsets<A> offsets{static_cast<const A*>(offset.const_data_ptr()),
                           mask ? static_cast<const A*>(mask->const_data_ptr()) : nullptr};
  const T* bias_data = bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
  for (int64_t first = 0; first < s.images; first += at_once) {
    const int64_t images = std::min(at_once, s.images - first);
    pack_images(PackRows<T, A>{read_map<T>(input), packed.get(), layout}, first, images);
    const Forward<T, A> f{layout,    offsets,           packed.get(), first, images * s.pixels(), panels, weights.get(),
                          bias_data, write_map<T>(out), taps_at_once, rows};
    const int64_t work = pixels * (panels.back().data + s.taps() * layout.channels * 8);
    for_tasks(images * chunks, work, [&](int64_t begin, int64_t end) {
      const int64_t column_count = rows * taps_at_once * layout.channels;
      const auto columns = aligned_buffer<A>(column_count), sums = aligned_buffer<A>(panel_count * rows * kLanes);
      // Rows that only fill a tile are computed too: with numbers, for what stands in fresh memory may be slow ones.
      std::fill_n(columns.get(), column_count, A(0));
      std::fill_n(sums.get(), panel_count * rows * kLanes, A(0));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t pixel = i % chunks * pixels;
        const Chunk chunk{i / chunks, pixel, std::min(pixels, s.out_pixels() - pixel), 0};
        simd::dispatch<Convolve>(f, chunk, columns.get(), sums.get());
      }
    });
  }
}

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const Tensor& offset, std::optional<Tensor> mask,
                   std::optional<Tensor> bias, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                   int64_t dilation_h, int64_t dilation_w) {
  constexpr const char* kOp = "deform_conv2d";
  const Shape s =
      check_forward(kOp, input, weight, offset, mask, bias, {stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w});
  Tensor out = empty_4d(input, s.images, s.out_channels, s.out_h, s.out_w, is_channels_last(input));
  if (out.numel() == 0) return out;
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    if (mask) mask = contiguous_as(*mask, type);
    if (bias) bias = torch::stable::contiguous(*bias);
    forward<T, A>(s, input, torch::stable::contiguous(weight), contiguous_as(offset, type), mask, bias, out);
  });
  return out;
}

}  // namespace
}  // namespace deform_conv2d
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("deform_conv2d", TORCH_BOX(&d2proj::deform_conv2d::forward_cpu)); }
