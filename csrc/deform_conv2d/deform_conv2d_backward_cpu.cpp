// Deformable convolution's backward pass on the CPU.
//
// For a block of output pixels: the columns' gradient (a product with the turned weights) and, while it is in the
// cache, the gradients of offsets and mask; then, by channels, the samples' gradients added to the pixels that they
// read, and, by taps and channels, the columns once more and their product with the output's gradient. A task owns
// what it adds to and blocks come in order: no atomics, and the same bits whatever the number of threads.
#include <tuple>

#include "deform_conv2d/deform_conv2d_cpu.h"

namespace d2proj {
namespace deform_conv2d {
namespace {

// The output channels that 64 bytes of input channels are connected to, and where their weights stand:
// [tap][output of `outputs`][lane] from `weights` on, and those of the weights' gradient from `sums` on, where outputs
// are padded to whole tiles.
struct Panel {
  Range outputs;
  int64_t weights, sums;
};

template <typename A>
std::vector<Panel> make_panels(const Layout<A>& layout) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Shape& s = layout.s;
  std::vector<Panel> panels;
  int64_t weights = 0, sums = 0;
  for (int64_t at = 0; at < layout.channels; at += kLanes) {
    const int64_t first = at / layout.group * s.offset_channels() + at % layout.group;
    const int64_t last = std::min(first + kLanes, (at / layout.group + 1) * s.offset_channels()) - 1;
    const Range outputs{first / s.group_channels() * s.group_outputs(),
                        (last / s.group_channels() + 1) * s.group_outputs()};
    panels.push_back({outputs, weights, sums});
    weights += s.taps() * outputs.size() * kLanes;
    sums += s.taps() * padded_rows(outputs.size()) * kLanes;
  }
  panels.push_back({{0, 0}, weights, sums});
  return panels;
}

// Calls `body(o, c, lane)` for all weights of panel j: output channel, input channel within its group, lane.
template <typename A, typename Body>
void for_connections(const Layout<A>& layout, const Panel& panel, int64_t j, const Body& body) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Shape& s = layout.s;
  const int64_t at = j * kLanes;
  const int64_t first = at / layout.group * s.offset_channels() + at % layout.group;
  const int64_t lanes = std::min(kLanes, s.offset_channels() - at % layout.group);
  for (int64_t o = panel.outputs.begin; o < panel.outputs.end; ++o) {
    const int64_t group_first = o / s.group_outputs() * s.group_channels();
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t c = first + l - group_first;
      if (c >= 0 && c < s.group_channels()) body(o, c, l);
    }
  }
}

template <typename T, typename A>
struct Backward {
  const Layout<A>& layout;
  const Offsets<A>& offsets;
  const std::vector<Panel>& panels;
  const A* weights;
  Map<const T> grad;
  int64_t grad_rows;  // elements from a row of grad to the next, where rows follow each other; else 0
  // Of the images at hand, packed.
  const A* packed;
  A* packed_grad;  // or null: the input needs no gradient
  int64_t first_image, zero_pixel;
  // Of the block at hand. `capacity` pixels: corners [offset group][tap][pixel], output gradients [pixel][output],
  // column gradients [tap][panel][pixel][lane].
  int64_t capacity;
  Corners<A>* corners;
  A* output_grads;
  A* column_grads;  // or null: only the weights need a gradient
  // Results, null where not needed; weights as [tap][panel][output][lane].
  A* grad_weight;
  A* grad_offset;
  A* grad_mask;
};

template <typename A>
D2_INLINE A sum_of(const typename Wide<A>::type& value) {
  constexpr int kLanes = Wide<A>::kLanes;
  A lanes[kLanes];
  simd::store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The gradients of a sample's offsets and mask.
template <typename T, typename A>
D2_INLINE void place_gradients(const Backward<T, A>& f, const Corners<A>& c, int64_t group, int64_t tap,
                               const A* column_grad, int64_t image, int64_t pixel) {
  using V = typename Wide<A>::type;
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Shape& s = f.layout.s;
  const A* from[4];
  A along_y[4], along_x[4], weight[4];
  for (int k = 0; k < 4; ++k) {
    from[k] = f.packed + c.at[k] * f.layout.channels + group * f.layout.group;
    along_y[k] = slope_y(c.fraction_x, k), along_x[k] = slope_x(c.fraction_y, k);
    weight[k] = weight_of(c.fraction_y, c.fraction_x, k);
  }
  V dot[4] = {};
  for (int64_t v = 0; v < f.layout.group / kLanes; ++v) {
    V grad;
    simd::load(grad, column_grad + v * f.capacity * kLanes);
    for (int k = 0; k < 4; ++k) {
      V corner;
      simd::load(corner, from[k] + v * kLanes);
      dot[k] += grad * corner;
    }
  }
  if (f.grad_offset) {
    A* to = f.grad_offset + offset_index(s, image, group, tap, pixel);
    to[0] = c.mask * sum_of<A>(along_y[0] * dot[0] + along_y[1] * dot[1] + along_y[2] * dot[2] + along_y[3] * dot[3]);
    to[s.out_pixels()] =
        c.mask * sum_of<A>(along_x[0] * dot[0] + along_x[1] * dot[1] + along_x[2] * dot[2] + along_x[3] * dot[3]);
  }
  if (f.grad_mask) {
    f.grad_mask[mask_index(s, image, group, tap, pixel)] =
        sum_of<A>(weight[0] * dot[0] + weight[1] * dot[1] + weight[2] * dot[2] + weight[3] * dot[3]);
  }
}

// What comes first for a chunk: its corners, its output gradients, its column gradients, and the places' gradients.
struct Columns {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Backward<T, A>& f, const Chunk& chunk) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = f.layout.s;
    const int64_t image = f.first_image + chunk.image;
    for (int64_t g = 0; g < s.offset_groups; ++g) {
      for (int64_t t = 0; t < s.taps(); ++t) {
        Corners<A>* to = f.corners + (g * s.taps() + t) * f.capacity + chunk.first;
        for (int64_t p = 0; p < chunk.count; ++p) {
          to[p] = corners_of(s, f.offsets, image, chunk.image, g, t, chunk.begin + p, f.zero_pixel);
        }
      }
    }
    A* output_grads = f.output_grads + chunk.first * f.layout.outputs;
    for (int64_t o = 0; o < f.layout.outputs; o += kLanes) {
      const T* from = f.grad.data + image * f.grad.n + o * f.grad.c;
      const int64_t planes = std::min(kLanes, s.out_channels - o);
      for (int64_t done = 0; done < chunk.count;) {
        // To the end of the chunk, or of the row where rows do not follow each other.
        const int64_t y = (chunk.begin + done) / s.out_w, x = (chunk.begin + done) % s.out_w;
        const int64_t run = f.grad_rows ? chunk.count - done : std::min(chunk.count - done, s.out_w - x);
        simd::gather_lanes<L>(output_grads + done * f.layout.outputs + o, from + y * f.grad.h + x * f.grad.w, f.grad.c,
                              f.grad.w, planes, run, f.layout.outputs);
        done += run;
      }
    }
    if (!f.column_grads) return;
    const int64_t panels = static_cast<int64_t>(f.panels.size()) - 1;
    for (int64_t t = 0; t < s.taps(); ++t) {
      A* column_grads = f.column_grads + (t * panels * f.capacity + chunk.first) * kLanes;
      for (int64_t j = 0; j < panels;) {
        const Range range = f.panels[j].outputs;
        const bool two =
            j + 1 < panels && f.panels[j + 1].outputs.begin == range.begin && f.panels[j + 1].outputs.end == range.end;
        const Product<A> product{column_grads + j * f.capacity * kLanes,
                                 kLanes,
                                 f.capacity * kLanes,
                                 output_grads + range.begin,
                                 f.layout.outputs,
                                 1,
                                 0,
                                 f.weights + f.panels[j].weights + t * range.size() * kLanes,
                                 s.taps() * range.size() * kLanes,
                                 1,
                                 range.size(),
                                 false};
        multiply<L>(product, chunk.count, two ? 2 : 1);
        j += two ? 2 : 1;
      }
      if (!f.grad_offset && !f.grad_mask) continue;
      for (int64_t g = 0; g < s.offset_groups; ++g) {
        const Corners<A>* corners = f.corners + (g * s.taps() + t) * f.capacity + chunk.first;
        const A* of_group = column_grads + g * (f.layout.group / kLanes) * f.capacity * kLanes;
        for (int64_t p = 0; p < chunk.count; ++p) {
          place_gradients(f, corners[p], g, t, of_group + p * kLanes, image, chunk.begin + p);
        }
      }
    }
  }
};

// Adds a block's column gradients to the input's, for `width` panels from j on.
struct Spread {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Backward<T, A>& f, const std::vector<Chunk>& block, int64_t j, int64_t width) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = f.layout.s;
    const int64_t panels = static_cast<int64_t>(f.panels.size()) - 1;
    const int64_t group = j * kLanes / f.layout.group;
    A* to = f.packed_grad + j * kLanes;
    for (int64_t t = 0; t < s.taps(); ++t) {
      const Corners<A>* corners = f.corners + (group * s.taps() + t) * f.capacity;
      const A* column_grads = f.column_grads + (t * panels + j) * f.capacity * kLanes;
      for (const Chunk& chunk : block) {
        for (int64_t p = chunk.first; p < chunk.first + chunk.count; ++p) {
          const Corners<A>& c = corners[p];
          for (int k = 0; k < 4; ++k) {
            if (c.at[k] == f.zero_pixel) continue;
            const A weight = weight_of(c.fraction_y, c.fraction_x, k) * c.mask;
            for (int64_t v = 0; v < width; ++v) {
              V pixel, grad;
              A* at = to + c.at[k] * f.layout.channels + v * kLanes;
              simd::load(pixel, at);
              simd::load(grad, column_grads + (v * f.capacity + p) * kLanes);
              pixel += weight * grad;
              simd::store(at, pixel);
            }
          }
        }
      }
    }
  }
};

// Adds a block's part to the weights' gradient, for a tap and `width` panels from j on.
struct Weigh {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Backward<T, A>& f, const std::vector<Chunk>& block, int64_t tap, int64_t j,
                            int64_t width, A* columns) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = f.layout.s;
    const int64_t group = j * kLanes / f.layout.group;
    const Corners<A>* corners = f.corners + (group * s.taps() + tap) * f.capacity;
    for (const Chunk& chunk : block) {
      for (int64_t p = 0; p < chunk.count; ++p) {
        sample(columns + p * kLanes, kChunk * kLanes, f.packed + j * kLanes, f.layout.channels,
               corners[chunk.first + p], width);
      }
      for (int64_t v = 0; v < width;) {
        const Panel& panel = f.panels[j + v];
        const Range range = panel.outputs;
        const bool two = v + 1 < width && f.panels[j + v + 1].outputs.begin == range.begin &&
                         f.panels[j + v + 1].outputs.end == range.end;
        const int64_t rows = padded_rows(range.size());
        const Product<A> product{f.grad_weight + panel.sums + tap * rows * kLanes,
                                 kLanes,
                                 s.taps() * rows * kLanes,
                                 f.output_grads + chunk.first * f.layout.outputs + range.begin,
                                 1,
                                 f.layout.outputs,
                                 0,
                                 columns + v * kChunk * kLanes,
                                 kChunk * kLanes,
                                 1,
                                 chunk.count,
                                 true};
        multiply<L>(product, range.size(), two ? 2 : 1);
        v += two ? 2 : 1;
      }
    }
  }
};

// Packed gradients of an image's rows to where they belong.
struct Unpack {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(Map<T> to, const A* packed, const Layout<A>& layout, int64_t image, int64_t slot,
                            int64_t begin, int64_t end) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = layout.s;
    // The result is dense in either layout, so its rows follow each other.
    const A* from = packed + (slot * s.pixels() + begin * s.width) * layout.channels;
    T* first = to.data + image * to.n + begin * s.width * to.w;
    for (int64_t g = 0; g < s.offset_groups; ++g) {
      for (int64_t c = 0; c < layout.group; c += kLanes) {
        simd::scatter_lanes<L>(first + (g * s.offset_channels() + c) * to.c, from + g * layout.group + c, to.c, to.w,
                               std::min(kLanes, s.offset_channels() - c), (end - begin) * s.width, layout.channels);
      }
    }
  }
};

template <typename A>
A* data_of(Tensor* tensor) {
  return tensor ? static_cast<A*>(tensor->mutable_data_ptr()) : nullptr;
}

// Results are null where not needed. Those of offset and mask are contiguous and in A.
template <typename T, typename A>
void backward(const Shape& s, const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& offset,
              const std::optional<Tensor>& mask, Tensor* grad_input, Tensor* grad_weight, Tensor* grad_offset,
              Tensor* grad_mask) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  constexpr int64_t kSize = sizeof(A);
  const Layout<A> layout(s);
  const std::vector<Panel> panels = make_panels(layout);
  const int64_t panel_count = static_cast<int64_t>(panels.size()) - 1;
  const int64_t depth = s.group_channels() * s.taps();
  const bool need_columns = grad_input || grad_offset || grad_mask;

  const auto weights = aligned_buffer<A>(need_columns ? panels.back().weights : 0);
  if (need_columns) {
    const T* from = static_cast<const T*>(weight.const_data_ptr());
    for_tasks(panel_count, panels[0].outputs.size() * s.taps() * kLanes * 4, [&](int64_t begin, int64_t end) {
      std::fill(weights.get() + panels[begin].weights, weights.get() + panels[end].weights, A(0));
      for (int64_t j = begin; j < end; ++j) {
        const int64_t size = panels[j].outputs.size();
        for_connections(layout, panels[j], j, [&](int64_t o, int64_t c, int64_t lane) {
          A* to = weights.get() + panels[j].weights + (o - panels[j].outputs.begin) * kLanes + lane;
          for (int64_t t = 0; t < s.taps(); ++t) {
            to[t * size * kLanes] = static_cast<A>(from[o * depth + c * s.taps() + t]);
          }
        });
      }
    });
  }
  const auto weight_sums = aligned_buffer<A>(grad_weight ? panels.back().sums : 0);
  if (grad_weight) std::fill_n(weight_sums.get(), panels.back().sums, A(0));

  // Blocks of whole chunks.
  const int64_t at_once = layout.images_at_once();
  const int64_t pixel_bytes = (s.taps() * layout.channels + layout.outputs) * kSize +
                              s.offset_groups * s.taps() * static_cast<int64_t>(sizeof(Corners<A>));
  const int64_t most = std::max(kTileRows, std::min<int64_t>(kBlockBytes / pixel_bytes, 8192));
  const int64_t chunk_pixels = std::min({kChunk, most, s.out_pixels()});
  const int64_t chunks_of_image = (s.out_pixels() + chunk_pixels - 1) / chunk_pixels;
  // A chunk has room for whole tiles, so that no task writes where another does.
  const int64_t room = padded_rows(chunk_pixels);
  const int64_t chunks_of_block = std::max<int64_t>(1, std::min(most / room, at_once * chunks_of_image));
  const int64_t capacity = chunks_of_block * room;

  const bool need_packed = grad_weight || grad_offset || grad_mask;
  const int64_t packed_count = (at_once * s.pixels() + 1) * layout.channels;
  const auto packed = aligned_buffer<A>(need_packed ? packed_count : 0);
  const auto packed_grad = aligned_buffer<A>(grad_input ? packed_count : 0);
  const auto corners = aligned_buffer<Corners<A>>(s.offset_groups * s.taps() * capacity);
  // Tiles of output channels and of pixels reach past the end here.
  const int64_t output_count = (capacity + 1) * layout.outputs + kTileRows;
  const auto output_grads = aligned_buffer<A>(output_count);
  std::fill_n(output_grads.get(), output_count, A(0));
  const auto column_grads = aligned_buffer<A>(need_columns ? s.taps() * layout.channels * capacity : 0);
  const Offsets<A> offsets{static_cast<const A*>(offset.const_data_ptr()),
                           mask ? static_cast<const A*>(mask->const_data_ptr()) : nullptr};
  const Map<const T> grad_map = read_map<T>(grad);
  const int64_t width = std::min<int64_t>(s.taps() < 4 ? 2 : 4, layout.group / kLanes);  // panels of a task
  const int64_t group_tasks = (layout.group / kLanes + width - 1) / width;
  // For some channels: spread their gradients, then weigh each tap, so that halves of the tasks cost the same.
  const int64_t spreads = grad_input ? 1 : 0, kinds = spreads + (grad_weight ? s.taps() : 0);
  const int64_t tasks = group_tasks * s.offset_groups * kinds;

  for (int64_t first = 0; first < s.images; first += at_once) {
    const int64_t images = std::min(at_once, s.images - first);
    if (need_packed) pack_images(PackRows<T, A>{read_map<T>(input), packed.get(), layout}, first, images);
    if (grad_input) std::fill_n(packed_grad.get(), images * s.pixels() * layout.channels, A(0));
    const Backward<T, A> f{layout,
                           offsets,
                           panels,
                           weights.get(),
                           grad_map,
                           grad_map.h == grad_map.w * s.out_w ? grad_map.h : 0,
                           packed.get(),
                           grad_input ? packed_grad.get() : nullptr,
                           first,
                           images * s.pixels(),
                           capacity,
                           corners.get(),
                           output_grads.get(),
                           need_columns ? column_grads.get() : nullptr,
                           grad_weight ? weight_sums.get() : nullptr,
                           data_of<A>(grad_offset),
                           data_of<A>(grad_mask)};
    const int64_t chunks = images * chunks_of_image;
    for (int64_t block = 0; block < chunks; block += chunks_of_block) {
      const int64_t in_block = std::min(chunks_of_block, chunks - block);
      std::vector<Chunk> parts;
      for (int64_t i = block; i < block + in_block; ++i) {
        const int64_t begin = i % chunks_of_image * chunk_pixels;
        parts.push_back(
            {i / chunks_of_image, begin, std::min(chunk_pixels, s.out_pixels() - begin), (i - block) * room});
      }
      for_tasks(in_block, chunk_pixels * (panels.back().weights + s.taps() * layout.channels * 8),
                [&](int64_t begin, int64_t end) {
                  for (int64_t i = begin; i < end; ++i) simd::dispatch<Columns>(f, parts[i]);
                });
      const int64_t work = in_block * chunk_pixels *
                           ((grad_weight ? panels.back().sums : 0) + s.taps() * layout.channels * 8) /
                           std::max<int64_t>(1, tasks);
      for_tasks(tasks, work, [&](int64_t begin, int64_t end) {
        const auto columns = aligned_buffer<A>(kChunk * width * kLanes);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t part = i / kinds, kind = i % kinds;
          const int64_t in_group = part % group_tasks * width;
          const int64_t j = part / group_tasks * (layout.group / kLanes) + in_group;
          const int64_t panels_here = std::min(width, layout.group / kLanes - in_group);
          if (kind < spreads) {
            simd::dispatch<Spread>(f, parts, j, panels_here);
          } else {
            simd::dispatch<Weigh>(f, parts, kind - spreads, j, panels_here, columns.get());
          }
        }
      });
    }
    if (grad_input) {
      constexpr int64_t kRows = 16;
      const int64_t bands = (s.height + kRows - 1) / kRows;
      Map<T> to = write_map<T>(*grad_input);
      for_tasks(images * bands, kRows * s.width * layout.channels, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i % bands * kRows;
          simd::dispatch<Unpack>(to, static_cast<const A*>(packed_grad.get()), layout, first + i / bands, i / bands,
                                 row, std::min(s.height, row + kRows));
        }
      });
    }
  }

  if (grad_weight) {
    T* to = static_cast<T*>(grad_weight->mutable_data_ptr());
    for_tasks(panel_count, panels[0].outputs.size() * s.taps() * kLanes * 4, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t rows = padded_rows(panels[j].outputs.size());
        for_connections(layout, panels[j], j, [&](int64_t o, int64_t c, int64_t lane) {
          const A* from = weight_sums.get() + panels[j].sums + (o - panels[j].outputs.begin) * kLanes + lane;
          for (int64_t t = 0; t < s.taps(); ++t) {
            to[o * depth + c * s.taps() + t] = static_cast<T>(from[t * rows * kLanes]);
          }
        });
      }
    });
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        const Tensor& offset, std::optional<Tensor> mask,
                                                        int64_t stride_h, int64_t stride_w, int64_t pad_h,
                                                        int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                                                        bool need_input, bool need_weight, bool need_offset,
                                                        bool need_mask, bool /*deterministic: always*/) {
  const Shape s = check_backward("_deform_conv2d_backward", grad, input, weight, offset, mask,
                                 {stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w});
  need_mask = need_mask && mask;
  const ScalarType type = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto like = [](bool needed, const Tensor& t, ScalarType dtype) {
    return needed ? torch::stable::new_empty(t, t.sizes(), dtype) : nothing(t);
  };
  Tensor grad_input =
      need_input ? empty_4d(input, s.images, s.channels, s.height, s.width, is_channels_last(input)) : nothing(input);
  Tensor grad_weight = like(need_weight, weight, weight.scalar_type());
  Tensor grad_offset = like(need_offset, offset, type);
  Tensor grad_mask = need_mask ? like(true, *mask, type) : nothing(mask ? *mask : offset);
  if (grad.numel() == 0) {
    for (Tensor* t : {&grad_input, &grad_weight, &grad_offset, &grad_mask}) torch::stable::zero_(*t);
  } else if (need_input || need_weight || need_offset || need_mask) {
    dispatch_floating(input.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      std::optional<Tensor> used_mask;
      if (mask) used_mask = contiguous_as(*mask, type);
      backward<T, accumulate_t<T>>(s, grad, input, torch::stable::contiguous(weight), contiguous_as(offset, type),
                                   used_mask, need_input ? &grad_input : nullptr, need_weight ? &grad_weight : nullptr,
                                   need_offset ? &grad_offset : nullptr, need_mask ? &grad_mask : nullptr);
    });
  }
  const auto in = [](const Tensor& t, ScalarType dtype) {
    return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  };
  return {grad_input, grad_weight, in(grad_offset, offset.scalar_type()),
          in(grad_mask, mask ? mask->scalar_type() : offset.scalar_type())};
}

}  // namespace
}  // namespace deform_conv2d
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_deform_conv2d_backward", TORCH_BOX(&d2proj::deform_conv2d::backward_cpu));
}
