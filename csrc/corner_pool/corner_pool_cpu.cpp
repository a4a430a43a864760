// Corner pooling on the CPU; corner_pool_cpu.h says how.
#include "corner_pool/corner_pool_cpu.h"

namespace d2proj {
namespace corner_pool {
namespace {

// `count` columns; `best` holds their running maxima.
template <bool kBack>
struct Columns {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* in, A* best, const Scan& s, int64_t count) {
    const int64_t wide = vectors<L, A>(count);
    if (wide == 1) {  // in a register
      auto top = Lanes<L, A>{} + kLowest<A>;
      for (int64_t i = 0; i < s.length; ++i) {
        const int64_t at = s.at(i) * s.inner;
        Lanes<L, A> value;
        read<L>(value, in + at, count, kLowest<A>);
        take<L>(top, value);
        write<L, true>(out + at, top, count);
      }
      return;
    }
    std::fill_n(best, wide * kLanes<L, A>, kLowest<A>);
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t at = s.at(i) * s.inner;
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t j = column<L, A, kBack>(k, wide);
        Lanes<L, A> value, top;
        read<L>(value, in + at + j, count - j, kLowest<A>);
        simd::load(top, best + j);
        take<L>(top, value);
        simd::store(best + j, top);
        write<L, true>(out + at + j, top, count - j);
      }
    }
  }
};

// Rows `begin` to `end` of `length`.
template <bool kBack>
struct Rows {
  template <Level L, typename T>
  static D2_INLINE void run(T* out, const T* in, int64_t length, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    const int64_t wide = vectors<L, A>(length);
    for (int64_t i = 0; i < end - begin; ++i) {
      const int64_t at = (kBack ? end - 1 - i : begin + i) * length;
      auto carry = Lanes<L, A>{} + kLowest<A>;
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t j = column<L, A, kBack>(k, wide);
        Lanes<L, A> value;
        read<L>(value, in + at + j, length - j, kLowest<A>);
        step_row<L, kBack>(value, carry);
        write<L, true>(out + at + j, value, length - j);
      }
    }
  }
};

template <typename T>
void forward(T* out, const T* in, const Scan& s) {
  using A = accumulate_t<T>;
  if (s.inner == 1) {
    const int64_t grain = std::max<int64_t>(1, kGrain / s.length);
    torch::stable::parallel_for(0, s.outer, grain, [&](int64_t begin, int64_t end) {
      dispatch<Rows>(s.from_end, out, in, s.length, begin, end);
    });
    return;
  }
  const int64_t columns = columns_of_task(s, 1 << 14);
  const int64_t parts = (s.inner + columns - 1) / columns;
  const int64_t cost = s.length * std::min(s.inner, columns);
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  torch::stable::parallel_for(0, s.outer * parts, grain, [&](int64_t begin, int64_t end) {
    const auto best = aligned_buffer<A>(padded(std::min(s.inner, columns)));
    for (int64_t i = 0; i < end - begin; ++i) {
      const int64_t task = s.from_end ? end - 1 - i : begin + i;
      const int64_t first = task % parts * columns, at = task / parts * s.length * s.inner + first;
      dispatch<Columns>(s.from_end, out + at, in + at, best.get(), s, std::min(columns, s.inner - first));
    }
  });
}

// A planar map's columns of `a` and rows of `b`, summed; `best` holds the columns' maxima.
template <bool kBack>
struct PlanarPair {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* a, const T* b, A* best, const Scan& down) {
    const int64_t width = down.inner, wide = vectors<L, A>(width);
    std::fill_n(best, wide * kLanes<L, A>, kLowest<A>);
    for (int64_t i = 0; i < down.length; ++i) {
      const int64_t at = down.at(i) * width;
      auto carry = Lanes<L, A>{} + kLowest<A>;
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t j = column<L, A, kBack>(k, wide);
        Lanes<L, A> value, top;
        read<L>(value, a + at + j, width - j, kLowest<A>);
        simd::load(top, best + j);
        take<L>(top, value);
        simd::store(best + j, top);
        read<L>(value, b + at + j, width - j, kLowest<A>);
        step_row<L, kBack>(value, carry);
        write<L, false>(out + at + j, top + value, width - j);
      }
    }
  }
};

// The same for `count` channels of a channels-last image; `best` holds the maxima of a row's cells, then of the row.
template <bool kBack>
struct ChannelsLastPair {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* a, const T* b, A* best, const Scan& down, const Scan& across,
                            int64_t count) {
    const int64_t wide = vectors<L, A>(count), pitch = wide * kLanes<L, A>;
    A* row_best = best + across.length * pitch;
    std::fill_n(best, across.length * pitch, kLowest<A>);
    for (int64_t i = 0; i < down.length; ++i) {
      std::fill_n(row_best, pitch, kLowest<A>);
      for (int64_t x = 0; x < across.length; ++x) {
        const int64_t cell = across.at(x), at = down.at(i) * down.inner + cell * across.inner;
        for (int64_t k = 0; k < wide; ++k) {
          const int64_t j = column<L, A, kBack>(k, wide);
          A* column_best = best + cell * pitch + j;
          Lanes<L, A> value, top, left;
          read<L>(value, a + at + j, count - j, kLowest<A>);
          simd::load(top, column_best);
          take<L>(top, value);
          simd::store(column_best, top);
          read<L>(value, b + at + j, count - j, kLowest<A>);
          simd::load(left, row_best + j);
          take<L>(left, value);
          simd::store(row_best + j, left);
          write<L, false>(out + at + j, top + left, count - j);
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
    torch::stable::parallel_for(0, down.outer, std::max<int64_t>(1, kGrain / slab), [&](int64_t begin, int64_t end) {
      const auto best = aligned_buffer<A>(padded(down.inner));
      for (int64_t i = 0; i < end - begin; ++i) {
        const int64_t at = (from_end ? end - 1 - i : begin + i) * slab;
        dispatch<PlanarPair>(from_end, out + at, a + at, b + at, best.get(), down);
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
    const auto best = aligned_buffer<A>((across.length + 1) * padded(columns));
    for (int64_t i = 0; i < end - begin; ++i) {
      const int64_t task = from_end ? end - 1 - i : begin + i;
      const int64_t first = task % parts * columns, at = task / parts * slab + first;
      dispatch<ChannelsLastPair>(from_end, out + at, a + at, b + at, best.get(), down, across,
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
