// Convolution with its bias, activation and residual sum on the CPU, channels-last, for inference.
//
// 3 x 3 kernels of stride 1 go through Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications. A block of tiles
// is transformed, each of the 36 values of a transformed tile is a matrix product over channels, and what comes out of
// a few channels of it goes back at once, while it is in the cache. All other kernels are one matrix product over
// columns that are laid out for a block of pixels at a time, or (depthwise) a plain sum. Weights come packed
// (d2proj/layers/fused.py).
#include <optional>

#include "common/map.h"
#include "deform_conv2d/gemm.h"
#include "fused_conv2d/fused_conv2d.h"

namespace d2proj {
namespace fused_conv2d {
namespace {

using deform_conv2d::multiply;
using deform_conv2d::padded_rows;
using deform_conv2d::Product;

constexpr int64_t kTile = 4, kWindow = 6, kValues = kWindow * kWindow;
constexpr int64_t kBlockTiles = 96;                              // of a product, whose sums stay in the L2 cache
constexpr int64_t kPanelStride = kBlockTiles * kLanes + kLanes;  // of sums, from a panel to the next
constexpr int64_t kTransformedBytes = int64_t(4) << 20;          // of tiles that threads share
constexpr int64_t kChannelsOfTiles = 128;                // of which a thread's L2 cache holds a transformed block
constexpr int64_t kGrain = 100000;                       // multiplications that are worth a thread
constexpr int64_t kBlockRows = 96, kDepthAtOnce = 1024;  // of columns, which stay there too
constexpr int64_t kFewChannels = 64;
constexpr int64_t kPairsAtOnce = 16;                          // of panels of output channels
constexpr int64_t kSumStride = kBlockRows * kLanes + kLanes;  // from a panel of sums to the next

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t step) { return ceil_div(a, step) * step; }

struct Range {
  int64_t begin, end;
};

struct Shape {
  int64_t images, channels, height, width;
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  int64_t pairs() const { return ceil_div(out_channels, 2 * kLanes); }
  int64_t panels() const { return ceil_div(out_channels, kLanes); }
  int64_t depth() const { return kernel_h * kernel_w * channels; }
  int64_t pixels() const { return images * out_h * out_w; }
  int64_t tiles_x() const { return ceil_div(out_w, kTile); }
  int64_t tiles_y() const { return ceil_div(out_h, kTile); }
};

struct Job {
  Shape s;
  const float* input;
  const float* weight;
  const float* bias;      // or null
  const float* residual;  // or null
  float* out;
  Activation activation;
  float slope;
};

// Bias, activation, residual, and out to pixel number `pixel`, channels from `channel` on.
template <Level L, Activation kActivation>
D2_INLINE void finish(const Job& job, Lanes x, int64_t pixel, int64_t channel, const Lanes& bias) {
  const int64_t count = job.s.out_channels - channel, at = pixel * job.s.out_channels + channel;
  x += bias;
  activate<kActivation>(x, job.slope);
  if (job.residual) {
    Lanes other;
    load_channels<L>(other, job.residual + at, count);
    x += other;
  }
  store_channels<L>(job.out + at, x, count);
}

template <Level L>
D2_INLINE Lanes bias_of(const Job& job, int64_t channel) {
  Lanes bias = {};
  if (job.bias) load_channels<L>(bias, job.bias + channel, job.s.out_channels - channel);
  return bias;
}

// A tile's place; all counted from 0.
struct Tile {
  int64_t image, y, x;
};
inline Tile tile_of(const Shape& s, int64_t number) {
  const int64_t in_image = number % (s.tiles_x() * s.tiles_y());
  return {number / (s.tiles_x() * s.tiles_y()), in_image / s.tiles_x(), in_image % s.tiles_x()};
}

// Transformed tiles [begin, end), of which the first is tile number `first`: [value][tile][channel].
struct TransformInput {
  template <Level L>
  static D2_INLINE void run(const Job& job, float* to, int64_t value_stride, int64_t pitch, int64_t first,
                            int64_t begin, int64_t end) {
    const Shape& s = job.s;
    for (int64_t number = begin; number < end; ++number) {
      const Tile tile = tile_of(s, first + number);
      const int64_t top = tile.y * kTile - s.pad_h, left = tile.x * kTile - s.pad_w;
      const float* image = job.input + tile.image * s.height * s.width * s.channels;
      for (int64_t c = 0; c < s.channels; c += kLanes) {
        Lanes values[kWindow][kWindow];
        for (int64_t j = 0; j < kWindow; ++j) {
          Lanes column[kWindow];
#pragma GCC unroll 6
          for (int64_t i = 0; i < kWindow; ++i) {
            const int64_t y = top + i, x = left + j;
            if (y >= 0 && y < s.height && x >= 0 && x < s.width) {
              load_channels<L>(column[i], image + (y * s.width + x) * s.channels + c, s.channels - c);
            } else {
              column[i] = Lanes{};
            }
          }
          transform_input(column);
#pragma GCC unroll 6
          for (int64_t i = 0; i < kWindow; ++i) values[i][j] = column[i];
        }
        float* at = to + number * pitch + c;
        for (int64_t i = 0; i < kWindow; ++i) {
          transform_input(values[i]);
#pragma GCC unroll 6
          for (int64_t j = 0; j < kWindow; ++j) simd::store(at + (i * kWindow + j) * value_stride, values[i][j]);
        }
      }
    }
  }
};

// Tiles [begin, end) of those that are transformed, times the weights of one pair of panels.
struct MultiplyTiles {
  template <Level L>
  static D2_INLINE void run(const Job& job, const float* transformed, int64_t value_stride, int64_t pitch,
                            int64_t begin, int64_t end, int64_t pair, float* sums) {
    const Shape& s = job.s;
    const int64_t count = end - begin, panels = std::min<int64_t>(2, s.panels() - 2 * pair);
    for (int64_t value = 0; value < kValues; ++value) {
      const Product<float> product{sums + value * 2 * kPanelStride,
                                   kLanes,
                                   kPanelStride,
                                   transformed + value * value_stride + begin * pitch,
                                   pitch,
                                   1,
                                   0,
                                   job.weight + (2 * pair * kValues + value) * s.channels * kLanes,
                                   kValues * s.channels * kLanes,
                                   1,
                                   s.channels,
                                   false};
      multiply<L>(product, count, panels);
    }
  }
};

// Back from the sums of one pair of panels to pixels.
template <Activation kActivation>
struct FinishTiles {
  template <Level L>
  static D2_INLINE void run(const Job& job, int64_t first, int64_t count, int64_t pair, const float* sums) {
    const Shape& s = job.s;
    const int64_t panels = std::min<int64_t>(2, s.panels() - 2 * pair);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t channel = (2 * pair + panel) * kLanes;
      const Lanes bias = bias_of<L>(job, channel);
      for (int64_t number = 0; number < count; ++number) {
        const float* at = sums + panel * kPanelStride + number * kLanes;
        Lanes values[kTile][kWindow];
        for (int64_t j = 0; j < kWindow; ++j) {
          Lanes column[kWindow];
#pragma GCC unroll 6
          for (int64_t i = 0; i < kWindow; ++i) simd::load(column[i], at + (i * kWindow + j) * 2 * kPanelStride);
          transform_output(column);
#pragma GCC unroll 4
          for (int64_t i = 0; i < kTile; ++i) values[i][j] = column[i];
        }
        const Tile tile = tile_of(s, first + number);
        const int64_t y = tile.y * kTile, x = tile.x * kTile;
        const int64_t rows = std::min(kTile, s.out_h - y), columns = std::min(kTile, s.out_w - x);
        for (int64_t i = 0; i < rows; ++i) {
          transform_output(values[i]);
          const int64_t pixel = (tile.image * s.out_h + y + i) * s.out_w + x;
          for (int64_t j = 0; j < columns; ++j) finish<L, kActivation>(job, values[i][j], pixel + j, channel, bias);
        }
      }
    }
  }
};

// Tiles [begin, end) of those that are transformed, of which the first is tile number `first`, times a pair of panels.
void multiply_and_finish(const Job& job, const float* transformed, int64_t value_stride, int64_t pitch, int64_t first,
                         const Range& tiles, int64_t pair, float* sums) {
  simd::dispatch<MultiplyTiles>(job, transformed, value_stride, pitch, tiles.begin, tiles.end, pair, sums);
  dispatch<FinishTiles>(job.activation, job, first + tiles.begin, tiles.end - tiles.begin, pair,
                        static_cast<const float*>(sums));
}

// Many tiles of few channels: each thread takes some from end to end, all in its own cache.
void winograd_by_tiles(const Job& job, int64_t tiles, int64_t pitch) {
  const int64_t blocks = round_up(ceil_div(tiles, kBlockTiles), torch::stable::get_num_threads());
  const int64_t length = ceil_div(tiles, blocks), value_stride = padded_rows(length) * pitch + kLanes;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const auto transformed = aligned_buffer<float>(kValues * value_stride);
    const auto sums = aligned_buffer<float>(kValues * 2 * kPanelStride);
    std::fill_n(transformed.get(), kValues * value_stride, 0.0f);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * length;
      const Range own{0, std::min(length, tiles - first)};
      if (own.end <= 0) break;
      simd::dispatch<TransformInput>(job, transformed.get(), value_stride, pitch, first, own.begin, own.end);
      for (int64_t pair = 0; pair < job.s.pairs(); ++pair) {
        multiply_and_finish(job, transformed.get(), value_stride, pitch, first, own, pair, sums.get());
      }
    }
  });
}

// Few tiles, or of many channels: threads share what is transformed, and the output channels too.
void winograd_by_channels(const Job& job, int64_t tiles, int64_t pitch) {
  const int64_t fitting = kTransformedBytes / (kValues * pitch * static_cast<int64_t>(sizeof(float)));
  const int64_t at_once = std::min(tiles, std::max(kBlockTiles, fitting / kBlockTiles * kBlockTiles));
  const int64_t value_stride = padded_rows(at_once) * pitch + kLanes;
  const auto transformed = aligned_buffer<float>(kValues * value_stride);
  for (int64_t first = 0; first < tiles; first += at_once) {
    const int64_t count = std::min(at_once, tiles - first);
    torch::stable::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
      simd::dispatch<TransformInput>(job, transformed.get(), value_stride, pitch, first, begin, end);
    });
    const int64_t blocks = ceil_div(count, kBlockTiles);
    torch::stable::parallel_for(0, blocks * job.s.pairs(), 1, [&](int64_t begin, int64_t end) {
      const auto sums = aligned_buffer<float>(kValues * 2 * kPanelStride);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t pair = task / blocks, from = task % blocks * kBlockTiles;
        const Range own{from, std::min(from + kBlockTiles, count)};
        multiply_and_finish(job, transformed.get(), value_stride, pitch, first, own, pair, sums.get());
      }
    });
  }
}

void winograd(const Job& job) {
  const Shape& s = job.s;
  const int64_t tiles = s.images * s.tiles_y() * s.tiles_x();
  // Rows that are a power of two apart would fall on the same few lines of the L1 cache.
  const int64_t pitch = round_up(s.channels, kLanes) + kLanes;
  const bool many = tiles >= 2 * kBlockTiles * torch::stable::get_num_threads();
  if (many && s.channels <= kChannelsOfTiles) {
    winograd_by_tiles(job, tiles, pitch);
  } else {
    winograd_by_channels(job, tiles, pitch);
  }
}

// A few numbers are copied as a whole register: what is too much is overwritten by the next tap, or stands behind the
// row; `end` is where reading must stop.
D2_INLINE void copy_run(float* to, const float* from, int64_t count, const float* end) {
  if (count <= kLanes && from + kLanes <= end) {
    Lanes x;
    simd::load(x, from);
    simd::store(to, x);
  } else {
    std::copy_n(from, count, to);
  }
}

// Columns of pixels [begin, end) and taps [first, last): a row a pixel, tap by tap, channel by channel.
struct Columns {
  template <Level L>
  static D2_INLINE void run(const Job& job, float* to, int64_t pitch, const Range& pixels, const Range& taps) {
    const Shape& s = job.s;
    const float* end = job.input + s.images * s.height * s.width * s.channels;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      const int64_t image = pixel / (s.out_h * s.out_w), in_image = pixel % (s.out_h * s.out_w);
      const int64_t top = in_image / s.out_w * s.stride_h - s.pad_h, left = in_image % s.out_w * s.stride_w - s.pad_w;
      const float* from = job.input + image * s.height * s.width * s.channels;
      float* row = to + (pixel - pixels.begin) * pitch;
      for (int64_t tap = taps.begin; tap < taps.end;) {
        const int64_t j = tap % s.kernel_w, y = top + tap / s.kernel_w * s.dilation_h, x = left + j * s.dilation_w;
        // Neighbours in a row of the kernel are neighbours in memory.
        const int64_t run = s.dilation_w == 1 ? std::min(s.kernel_w - j, taps.end - tap) : 1;
        const float* at = from + (y * s.width + x) * s.channels;
        if (y >= 0 && y < s.height && x >= 0 && x + run <= s.width) {
          copy_run(row, at, run * s.channels, end);
        } else {
          for (int64_t i = 0; i < run; ++i) {
            if (y >= 0 && y < s.height && x + i >= 0 && x + i < s.width) {
              copy_run(row + i * s.channels, at + i * s.channels, s.channels, end);
            } else {
              std::fill_n(row + i * s.channels, s.channels, 0.0f);
            }
          }
        }
        row += run * s.channels;
        tap += run;
      }
    }
  }
};

// The product of a block's columns (from tap `taps.begin` on) with the weights of pairs of panels, added to the sums.
struct MultiplyColumns {
  template <Level L>
  static D2_INLINE void run(const Job& job, const float* columns, int64_t pitch, int64_t count, const Range& taps,
                            const Range& pairs, float* sums) {
    const Shape& s = job.s;
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
      const Product<float> product{sums + (pair - pairs.begin) * 2 * kSumStride,
                                   kLanes,
                                   kSumStride,
                                   columns,
                                   pitch,
                                   1,
                                   0,
                                   job.weight + (2 * pair * s.depth() + taps.begin * s.channels) * kLanes,
                                   s.depth() * kLanes,
                                   1,
                                   (taps.end - taps.begin) * s.channels,
                                   taps.begin > 0};
      multiply<L>(product, count, std::min<int64_t>(2, s.panels() - 2 * pair));
    }
  }
};

template <Activation kActivation>
struct FinishPixels {
  template <Level L>
  static D2_INLINE void run(const Job& job, const Range& pixels, const Range& pairs, const float* sums) {
    const int64_t first = 2 * pairs.begin;
    for (int64_t panel = first; panel < std::min(2 * pairs.end, job.s.panels()); ++panel) {
      const Lanes bias = bias_of<L>(job, panel * kLanes);
      for (int64_t p = pixels.begin; p < pixels.end; ++p) {
        Lanes x;
        simd::load(x, sums + (panel - first) * kSumStride + (p - pixels.begin) * kLanes);
        finish<L, kActivation>(job, x, p, panel * kLanes, bias);
      }
    }
  }
};

void direct(const Job& job) {
  const Shape& s = job.s;
  const int64_t taps = s.kernel_h * s.kernel_w;
  const int64_t taps_at_once = std::clamp<int64_t>(kDepthAtOnce / s.channels, 1, taps);
  const int64_t pitch = round_up(taps_at_once * s.channels, kLanes) + kLanes;
  const int64_t blocks = ceil_div(s.pixels(), kBlockRows);
  // Few blocks are cut by output channels too, so that every thread has some.
  const int64_t cuts = std::max(std::min(s.pairs(), ceil_div(16, blocks)), ceil_div(s.pairs(), kPairsAtOnce));
  const int64_t pairs_at_once = ceil_div(s.pairs(), cuts);
  torch::stable::parallel_for(0, blocks * cuts, 1, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<float>(kBlockRows * pitch);
    const auto sums = aligned_buffer<float>(2 * pairs_at_once * kSumStride);
    std::fill_n(buffer.get(), kBlockRows * pitch, 0.0f);
    for (int64_t task = begin, filled = -1; task < end; ++task) {
      const int64_t block = task / cuts;
      const Range pixels{block * kBlockRows, std::min((block + 1) * kBlockRows, s.pixels())};
      const int64_t from = task % cuts * pairs_at_once;
      const Range pairs{std::min(from, s.pairs()), std::min(from + pairs_at_once, s.pairs())};
      const int64_t count = pixels.end - pixels.begin;
      for (int64_t tap = 0; tap < taps; tap += taps_at_once) {
        const Range some{tap, std::min(tap + taps_at_once, taps)};
        if (filled != block || taps_at_once < taps) {
          simd::dispatch<Columns>(job, buffer.get(), pitch, pixels, some);
          filled = block;
        }
        simd::dispatch<MultiplyColumns>(job, static_cast<const float*>(buffer.get()), pitch, count, some, pairs,
                                        sums.get());
      }
      dispatch<FinishPixels>(job.activation, job, pixels, pairs, static_cast<const float*>(sums.get()));
    }
  });
}

// As `direct`, for few channels and a wide kernel: nearly all of its time would go into columns. Rows of the input are
// copied instead, with their borders; columns of neighbouring pixels overlap in them.
struct MultiplyRows {
  template <Level L>
  static D2_INLINE void run(const Job& job, float* rows, int64_t pitch, int64_t row, const Range& segment,
                            const Range& pairs, float* sums) {
    const Shape& s = job.s;
    const int64_t count = segment.end - segment.begin, length = (count - 1) * s.stride_w + s.kernel_w;
    const int64_t left = segment.begin * s.stride_w - s.pad_w;
    const int64_t first = std::clamp<int64_t>(-left, 0, length), last = std::clamp(s.width - left, first, length);
    for (int64_t i = 0; i < s.kernel_h; ++i) {
      const int64_t y = row % s.out_h * s.stride_h - s.pad_h + i * s.dilation_h;
      float* to = rows + i * pitch;
      if (y < 0 || y >= s.height) {
        std::fill_n(to, length * s.channels, 0.0f);
        continue;
      }
      const float* from = job.input + ((row / s.out_h * s.height + y) * s.width + left) * s.channels;
      std::fill_n(to, first * s.channels, 0.0f);
      std::copy(from + first * s.channels, from + last * s.channels, to + first * s.channels);
      std::fill(to + last * s.channels, to + length * s.channels, 0.0f);
    }
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
      const Product<float> product{sums + (pair - pairs.begin) * 2 * kSumStride,
                                   kLanes,
                                   kSumStride,
                                   rows,
                                   s.stride_w * s.channels,
                                   1,
                                   pitch,
                                   job.weight + 2 * pair * s.depth() * kLanes,
                                   s.depth() * kLanes,
                                   s.kernel_h,
                                   s.kernel_w * s.channels,
                                   false};
      multiply<L>(product, count, std::min<int64_t>(2, s.panels() - 2 * pair));
    }
  }
};

void row_by_row(const Job& job) {
  const Shape& s = job.s;
  const int64_t parts = ceil_div(s.out_w, kBlockRows), length = ceil_div(s.out_w, parts);
  const int64_t pitch = ((padded_rows(length) - 1) * s.stride_w + s.kernel_w) * s.channels + kLanes;
  const int64_t cuts = ceil_div(s.pairs(), kPairsAtOnce), pairs_at_once = ceil_div(s.pairs(), cuts);
  torch::stable::parallel_for(0, s.images * s.out_h * parts * cuts, 1, [&](int64_t begin, int64_t end) {
    const auto rows = aligned_buffer<float>(s.kernel_h * pitch);
    const auto sums = aligned_buffer<float>(2 * pairs_at_once * kSumStride);
    std::fill_n(rows.get(), s.kernel_h * pitch, 0.0f);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / cuts / parts, part = task / cuts % parts, pair = task % cuts * pairs_at_once;
      const Range segment{part * length, std::min((part + 1) * length, s.out_w)};
      const Range pairs{pair, std::min(pair + pairs_at_once, s.pairs())};
      if (segment.begin >= segment.end) continue;
      const Range pixels{row * s.out_w + segment.begin, row * s.out_w + segment.end};
      simd::dispatch<MultiplyRows>(job, rows.get(), pitch, row, segment, pairs, sums.get());
      dispatch<FinishPixels>(job.activation, job, pixels, pairs, static_cast<const float*>(sums.get()));
    }
  });
}

// The sum of one pixel of a convolution of each channel by itself: taps that are outside the map are left out.
template <Level L>
D2_INLINE Lanes depthwise_sum(const Job& job, const float* image, const float* weight, int64_t top, int64_t left,
                              int64_t channel) {
  const Shape& s = job.s;
  Lanes sum = {};
  for (int64_t i = 0; i < s.kernel_h; ++i) {
    const int64_t y = top + i * s.dilation_h;
    if (y < 0 || y >= s.height) continue;
    for (int64_t j = 0; j < s.kernel_w; ++j) {
      const int64_t x = left + j * s.dilation_w;
      if (x < 0 || x >= s.width) continue;
      Lanes value, factor;
      load_channels<L>(value, image + (y * s.width + x) * s.channels + channel, s.channels - channel);
      simd::load(factor, weight + (i * s.kernel_w + j) * kLanes);
      sum += value * factor;
    }
  }
  return sum;
}

// Rows [begin, end) of the output, counted through all images. Inside the map 3 x 3 taps stay in registers.
template <Activation kActivation>
struct Depthwise {
  template <Level L>
  static D2_INLINE void run(const Job& job, int64_t begin, int64_t end) {
    const Shape& s = job.s;
    const bool small = s.kernel_h == 3 && s.kernel_w == 3 && s.dilation_h == 1 && s.dilation_w == 1;
    for (int64_t number = begin; number < end; ++number) {
      const int64_t top = number % s.out_h * s.stride_h - s.pad_h;
      const float* image = job.input + number / s.out_h * s.height * s.width * s.channels;
      // Pixels [first, last) see no border.
      const bool inside = small && top >= 0 && top + 3 <= s.height && s.width + s.pad_w >= 3;
      const int64_t first = inside ? std::min(s.out_w, ceil_div(s.pad_w, s.stride_w)) : s.out_w;
      const int64_t last = inside ? std::min(s.out_w, (s.width + s.pad_w - 3) / s.stride_w + 1) : s.out_w;
      for (int64_t c = 0; c < s.channels; c += kLanes) {
        const float* weight = job.weight + c * s.kernel_h * s.kernel_w;
        const Lanes bias = bias_of<L>(job, c);
        const bool whole = s.channels - c >= kLanes;
        Lanes factors[9];
        for (int64_t k = 0; k < (small ? 9 : 0); ++k) simd::load(factors[k], weight + k * kLanes);
        for (int64_t x = 0; x < s.out_w; ++x) {
          const int64_t left = x * s.stride_w - s.pad_w;
          if (x < first || x >= last || !whole) {
            finish<L, kActivation>(job, depthwise_sum<L>(job, image, weight, top, left, c), number * s.out_w + x, c,
                                   bias);
            continue;
          }
          const float* at = image + (top * s.width + left) * s.channels + c;
          Lanes sum = {};
#pragma GCC unroll 9
          for (int64_t k = 0; k < 9; ++k) {
            Lanes value;
            simd::load(value, at + (k / 3 * s.width + k % 3) * s.channels);
            sum += value * factors[k];
          }
          finish<L, kActivation>(job, sum, number * s.out_w + x, c, bias);
        }
      }
    }
  }
};

void depthwise(const Job& job) {
  const Shape& s = job.s;
  const int64_t row = s.out_w * s.channels * s.kernel_h * s.kernel_w;
  torch::stable::parallel_for(
      0, s.images * s.out_h, std::max<int64_t>(1, kGrain / row),
      [&](int64_t begin, int64_t end) { dispatch<Depthwise>(job.activation, job, begin, end); });
}

// What a packed weight must have: panels of lanes times the rows of each (d2proj/layers/fused.py).
void check_arguments(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, const Shape& s, bool is_winograd, bool is_depthwise,
                     int64_t activation) {
  for (const Tensor* tensor : {&input, &weight, bias ? &*bias : nullptr, residual ? &*residual : nullptr}) {
    check(!tensor || tensor->scalar_type() == ScalarType::Float, op, "all tensors must be float32, got ",
          tensor ? torch::headeronly::toString(tensor->scalar_type()) : "");
  }
  constexpr int64_t kMost = int64_t(1) << 30;  // far beyond any memory, so that no product leaves 64 bits
  for (const int64_t v :
       {s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.out_channels, s.channels}) {
    check(v > 0 && v <= kMost, op, "channels, kernel, stride and dilation must be from 1 to ", kMost, ", got ", v);
  }
  for (const int64_t v : {s.pad_h, s.pad_w}) {
    check(v >= 0 && v <= kMost, op, "padding must be from 0 to ", kMost, ", got ", v);
  }
  check(activation >= 0 && activation < kActivations, op, "activation must be from 0 to ", kActivations - 1, ", got ",
        activation);
  check(!is_winograd || (!is_depthwise && s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 &&
                         s.dilation_h == 1 && s.dilation_w == 1),
        op, "Winograd's transform is for kernels of 3 x 3 with stride and dilation 1");
  const int64_t rows = is_winograd ? kValues : s.kernel_h * s.kernel_w, channels = is_depthwise ? 1 : s.channels;
  check(!is_depthwise || s.channels == s.out_channels, op, "a depthwise convolution has as many channels as before");
  check(weight.dim() == 4 && weight.is_contiguous() && weight.size(0) == s.panels() && weight.size(1) == rows &&
            weight.size(2) == channels && weight.size(3) == kLanes,
        op, "weight must be packed, contiguous, of shape (", s.panels(), ", ", rows, ", ", channels, ", ", kLanes,
        "), got ", shape_of(weight));
  check(!bias || (bias->dim() == 1 && bias->size(0) == s.out_channels && bias->is_contiguous()), op,
        "bias must have shape (", s.out_channels, ",), got ", bias ? shape_of(*bias) : "");
}

inline int64_t output_length(int64_t length, int64_t pad, int64_t dilation, int64_t kernel, int64_t stride) {
  const int64_t room = length + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

Tensor as_channels_last(const Tensor& tensor) { return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast); }

Tensor fused_conv2d_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                        std::optional<Tensor> residual, int64_t out_channels, int64_t kernel_h, int64_t kernel_w,
                        int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                        int64_t dilation_w, bool is_winograd, bool is_depthwise, int64_t activation, double slope) {
  constexpr const char* kOp = "fused_conv2d";
  check_dim(kOp, "input", input, 4, "(N, C, H, W)");
  Shape s{input.size(0), input.size(1), input.size(2), input.size(3), out_channels, 0,          0,         kernel_h,
          kernel_w,      stride_h,      stride_w,      pad_h,         pad_w,        dilation_h, dilation_w};
  check_arguments(kOp, input, weight, bias, residual, s, is_winograd, is_depthwise, activation);
  s.out_h = output_length(s.height, pad_h, dilation_h, kernel_h, stride_h);
  s.out_w = output_length(s.width, pad_w, dilation_w, kernel_w, stride_w);
  check(s.out_h > 0 && s.out_w > 0, kOp, "the kernel is larger than the padded input, ", shape_of(input));
  Tensor out = empty_4d(input, s.images, out_channels, s.out_h, s.out_w, true);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const Tensor from = as_channels_last(input);
  if (residual) {
    check(residual->dim() == 4 && residual->size(0) == s.images && residual->size(1) == out_channels &&
              residual->size(2) == s.out_h && residual->size(3) == s.out_w,
          kOp, "residual must have the result's shape, ", shape_of(out), ", got ", shape_of(*residual));
    residual = as_channels_last(*residual);
  }
  const Job job{s,
                static_cast<const float*>(from.const_data_ptr()),
                static_cast<const float*>(weight.const_data_ptr()),
                bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr,
                residual ? static_cast<const float*>(residual->const_data_ptr()) : nullptr,
                static_cast<float*>(out.mutable_data_ptr()),
                static_cast<Activation>(activation),
                static_cast<float>(slope)};
  if (is_winograd) {
    winograd(job);
  } else if (is_depthwise) {
    depthwise(job);
  } else if (kernel_h * kernel_w > 1 && dilation_w == 1 && s.channels <= kFewChannels && s.out_w >= kBlockRows / 2) {
    row_by_row(job);
  } else {
    direct(job);
  }
  return out;
}

}  // namespace
}  // namespace fused_conv2d
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_fused_conv2d", TORCH_BOX(&d2proj::fused_conv2d::fused_conv2d_cpu));
}
