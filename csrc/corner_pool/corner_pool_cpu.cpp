// Corner pooling on the CPU; corner_pool_cpu.h says how.
#include "corner_pool/corner_pool_cpu.h"

namespace d2proj {
namespace corner_pool {
namespace {

struct Columns {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* in, A* best, const Scan& s, int64_t count) {
    scan_columns<L>(out, in, best, s, s.inner, count);
  }
};

struct Rows {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* in, A* buf, const Scan& s, int64_t rows) {
    scan_rows<L>(out, in, buf, s, rows);
  }
};

template <typename T>
void forward(T* out, const T* in, const Scan& s) {
  using A = accumulate_t<T>;
  if (s.inner == 1) {
    constexpr int64_t kRows = simd::Wide<A>::kLanes;
    const int64_t tasks = (s.outer + kRows - 1) / kRows;
    const int64_t grain = std::max<int64_t>(1, kGrain / (kRows * s.length));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      const auto buf = aligned_buffer<A>(std::min(s.length, kRowChunk) * kRows);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i * kRows, at = row * s.length;
        simd::dispatch<Rows>(out + at, in + at, buf.get(), s, std::min(kRows, s.outer - row));
      }
    });
    return;
  }
  const int64_t columns = columns_of_task(s, 2048);
  const int64_t parts = (s.inner + columns - 1) / columns;
  const int64_t cost = s.length * std::min(s.inner, columns);
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  torch::stable::parallel_for(0, s.outer * parts, grain, [&](int64_t begin, int64_t end) {
    const auto best = aligned_buffer<A>(std::min(s.inner, columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * columns, at = i / parts * s.length * s.inner + first;
      simd::dispatch<Columns>(out + at, in + at, best.get(), s, std::min(columns, s.inner - first));
    }
  });
}

// A planar map's columns of `a` and rows of `b`, summed; `buf` holds a turned chunk, then the columns' maxima.
struct PlanarPair {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* a, const T* b, A* buf, const Scan& down, const Scan& across) {
    constexpr int64_t kRows = simd::Wide<A>::kLanes;
    A* best = buf + std::min(across.length, kRowChunk) * kRows;
    const int64_t width = down.inner;
    for (int64_t done = 0; done < down.length; done += kRows) {
      const int64_t rows = std::min(kRows, down.length - done);
      const int64_t top = down.from_end ? down.length - done - rows : done;
      scan_rows<L>(out + top * width, b + top * width, buf, across, rows);
      for (int64_t i = done; i < done + rows; ++i) {
        const int64_t at = down.at(i) * width;
        if (i == 0) {
          step_columns<L, true, true>(out + at, a + at, best, width);
        } else {
          step_columns<L, false, true>(out + at, a + at, best, width);
        }
      }
    }
  }
};

// The same for `count` channels of a channels-last image; `buf` holds `count` maxima, then those of a row.
struct ChannelsLastPair {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* a, const T* b, A* buf, const Scan& down, const Scan& across,
                            int64_t count) {
    A* best = buf + count;
    for (int64_t i = 0; i < down.length; ++i) {
      const int64_t row = down.at(i) * down.inner;
      scan_columns<L>(out + row, b + row, buf, across, across.inner, count);
      for (int64_t x = 0; x < across.length; ++x) {
        const int64_t at = row + x * across.inner;
        if (i == 0) {
          step_columns<L, true, true>(out + at, a + at, best + x * count, count);
        } else {
          step_columns<L, false, true>(out + at, a + at, best + x * count, count);
        }
      }
    }
  }
};

template <typename T>
void forward_pair(T* out, const T* a, const T* b, const Tensor& shape, bool last, bool from_end) {
  using A = accumulate_t<T>;
  const Scan down = scan_of(shape, last, 2, from_end), across = scan_of(shape, last, 3, from_end);
  const int64_t slab = down.length * down.inner;
  if (!last) {
    const int64_t buffer = std::min(across.length, kRowChunk) * simd::Wide<A>::kLanes + down.inner;
    torch::stable::parallel_for(0, down.outer, std::max<int64_t>(1, kGrain / slab), [&](int64_t begin, int64_t end) {
      const auto buf = aligned_buffer<A>(buffer);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * slab;
        simd::dispatch<PlanarPair>(out + at, a + at, b + at, buf.get(), down, across);
      }
    });
    return;
  }
  // Channels of a task: a row's maxima should stay in the second-level cache.
  const int64_t channels = across.inner;
  const int64_t fit = std::max<int64_t>(64, (int64_t(1) << 15) / across.length / 64 * 64);
  const int64_t columns = std::min(channels, columns_of_task({down.outer, 1, channels, false}, fit));
  const int64_t parts = (channels + columns - 1) / columns;
  const int64_t cost = slab / channels * columns;
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  torch::stable::parallel_for(0, down.outer * parts, grain, [&](int64_t begin, int64_t end) {
    const auto buf = aligned_buffer<A>((across.length + 1) * columns);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * columns, at = i / parts * slab + first;
      simd::dispatch<ChannelsLastPair>(out + at, a + at, b + at, buf.get(), down, across,
                                       std::min(columns, channels - first));
    }
  });
}

Tensor forward_cpu(const Tensor& input, int64_t dim, bool from_end) {
  constexpr const char* kOp = "corner_pool";
  check_input(kOp, "input", input);
  check_axis(kOp, dim);
  const bool last = is_channels_last(input);
  Tensor out = empty_like(input, last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const Tensor in = dense(input, last);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    forward(static_cast<T*>(out.mutable_data_ptr()), static_cast<const T*>(in.const_data_ptr()),
            scan_of(in, last, dim, from_end));
  });
  return out;
}

Tensor forward_pair_cpu(const Tensor& input_a, const Tensor& input_b, bool from_end) {
  constexpr const char* kOp = "corner_pool_pair";
  check_input(kOp, "x_a", input_a);
  check_like(kOp, "x_b", input_b, "x_a", input_a);
  const bool last = is_channels_last(input_a);
  Tensor out = empty_like(input_a, last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const Tensor a = dense(input_a, last), b = dense(input_b, last);
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    forward_pair(static_cast<T*>(out.mutable_data_ptr()), static_cast<const T*>(a.const_data_ptr()),
                 static_cast<const T*>(b.const_data_ptr()), out, last, from_end);
  });
  return out;
}

}  // namespace
}  // namespace corner_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("corner_pool", TORCH_BOX(&d2proj::corner_pool::forward_cpu));
  m.impl("corner_pool_pair", TORCH_BOX(&d2proj::corner_pool::forward_pair_cpu));
}
