// Corner pooling's backward pass on the CPU. A scan again finds where the running maximum was replaced, and keeps a bit
// for each element; then, walking back, the gradient is summed and left at each such place. Each task owns what it
// writes.
#include "corner_pool/corner_pool_cpu.h"

namespace d2proj {
namespace corner_pool {
namespace {

// `count` columns; `buf` holds their running maxima, then their sums.
template <bool kBack>
struct ColumnsBackward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* grad, const T* in, A* buf, Bits* bits, const Scan& s, int64_t count) {
    constexpr Bits kAll = (1u << kLanes<L, A>)-1;
    const int64_t wide = vectors<L, A>(count);
    std::fill_n(buf, wide * kLanes<L, A>, kLowest<A>);
    Bits* mine = bits;
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t at = s.at(i) * s.inner;
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t j = column<L, A, kBack>(k, wide);
        Lanes<L, A> value, best;
        read<L>(value, in + at + j, count - j, kLowest<A>);
        simd::load(best, buf + j);
        *mine++ = replaced<L>(value, best);
        take<L>(best, value);
        simd::store(buf + j, best);
      }
    }
    std::fill_n(bits, wide, kAll);  // a line's first
    std::fill_n(buf, wide * kLanes<L, A>, A(0));
    for (int64_t i = s.length - 1; i >= 0; --i) {
      const int64_t at = s.at(i) * s.inner;
      for (int64_t k = wide - 1; k >= 0; --k) {
        const int64_t j = column<L, A, kBack>(k, wide);
        Lanes<L, A> share, sum, left = {};
        read<L>(share, grad + at + j, count - j, A(0));
        simd::load(sum, buf + j);
        sum += share;
        share = Lanes<L, A>{};
        const uint32_t here = *--mine;
        choose<L>(share, sum, here);
        choose<L>(sum, left, here);
        write<L, false>(out + at + j, share, count - j);
        simd::store(buf + j, sum);
      }
    }
  }
};

// Rows are taken so many at a time that the bits stay in the first-level cache.
inline int64_t rows_at_once(int64_t length) { return std::max<int64_t>(1, (int64_t(1) << 15) / length); }

// Adds to each lane of `joined` the one after it (in scan order), then the two after, the four, ...
template <Level L, bool kBack, int kStep, typename V>
D2_INLINE void add_after(V& sum, uint32_t joined) {
  if constexpr (kStep < static_cast<int>(sizeof(V) / sizeof(sum[0]))) {
    V after;
    move<L, kBack ? kStep : -kStep>(after, sum);
    add<L>(sum, after, joined);
    add_after<L, kBack, 2 * kStep>(sum, joined & (kBack ? joined << kStep : joined >> kStep));
  }
}

// A vector's gradients become the sums from each lane on, up to where the maximum was replaced next; `mine`: the lanes
// in which it was. `carry`, in all lanes, is the sum of the vector after, unless that is `closed`: replaced at once.
template <Level L, bool kBack, typename V>
D2_INLINE void sum_back(V& sum, V& carry, uint32_t mine, bool closed) {
  constexpr int kCount = sizeof(V) / sizeof(sum[0]);
  constexpr uint32_t kAll = (1u << kCount) - 1;
  // Lanes whose next one took the maximum's place, and those from which the vector's end is reached.
  uint32_t cut, through;
  if constexpr (kBack) {
    cut = (mine << 1 | closed) & kAll;
    through = ((cut & -cut) - 1) & kAll;
    add_after<L, kBack, 1>(sum, ~cut & kAll & ~1u);
  } else {
    cut = mine >> 1 | static_cast<uint32_t>(closed) << (kCount - 1);
    through = kAll & ~((~0u >> __builtin_clz(2 * cut + 1)) >> 1);
    add_after<L, kBack, 1>(sum, ~cut & (kAll >> 1));
  }
  add<L>(sum, carry, through);
  move<L, kBack ? -kCount : kCount>(carry, sum);
}

// Rows `begin` to `end` of `length`.
template <bool kBack>
struct RowsBackward {
  template <Level L, typename T>
  static D2_INLINE void run(T* out, const T* grad, const T* in, Bits* bits, int64_t length, int64_t begin,
                            int64_t end) {
    using A = accumulate_t<T>;
    const int64_t wide = vectors<L, A>(length);
    const uint32_t first = kBack ? 1u << (length - 1) % kLanes<L, A> : 1u,
                   lowest = kBack ? 1u << (kLanes<L, A> - 1) : 1u;
    for (; begin < end; begin += rows_at_once(length)) {
      const int64_t rows = std::min(end - begin, rows_at_once(length));
      Bits* mine = bits;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (begin + (kBack ? rows - 1 - i : i)) * length;
        auto carry = Lanes<L, A>{} + kLowest<A>;
        uint32_t forced = first;
        for (int64_t k = 0; k < wide; ++k) {
          const int64_t j = column<L, A, kBack>(k, wide);
          Lanes<L, A> value, best, before = carry;
          read<L>(value, in + at + j, length - j, kLowest<A>);
          best = value;
          step_row<L, kBack>(best, carry);
          Lanes<L, A> moved;
          move<L, kBack ? -1 : 1>(moved, best);
          choose<L>(before, moved, ~lowest);
          *mine++ = replaced<L>(value, before) | forced;
          forced = 0;
        }
      }
      for (int64_t i = rows - 1; i >= 0; --i) {
        const int64_t at = (begin + (kBack ? rows - 1 - i : i)) * length;
        Lanes<L, A> carry = {};
        bool closed = true;
        for (int64_t k = wide - 1; k >= 0; --k) {
          const int64_t j = column<L, A, kBack>(k, wide);
          Lanes<L, A> sum, share = {};
          read<L>(sum, grad + at + j, length - j, A(0));
          const uint32_t here = *--mine;
          sum_back<L, kBack>(sum, carry, here, closed);
          closed = here & lowest;
          choose<L>(share, sum, here);
          write<L, false>(out + at + j, share, length - j);
        }
      }
    }
  }
};

// Bits of `length` times `columns` elements, in this CPU's vectors.
template <typename A>
int64_t bits_of(int64_t length, int64_t columns) {
  const int64_t lanes = (16 << static_cast<int>(simd::level())) / static_cast<int64_t>(sizeof(A));
  return length * ((columns + lanes - 1) / lanes);
}

// Columns that a task takes: long stretches are read fastest, up to 256 kB of bits, which the second-level cache holds.
template <typename A>
int64_t columns_at_once(const Scan& s) {
  const int64_t fit = (int64_t(1) << 17) / bits_of<A>(s.length, 64) * 64;
  return std::min(std::max<int64_t>(64, fit), int64_t(1) << 14);
}

template <typename T>
void backward(T* out, const T* grad, const T* in, const Scan& s) {
  using A = accumulate_t<T>;
  if (s.inner == 1) {
    const int64_t grain = std::max<int64_t>(1, kGrain / s.length);
    torch::stable::parallel_for(0, s.outer, grain, [&](int64_t begin, int64_t end) {
      const auto bits = aligned_buffer<Bits>(bits_of<A>(std::min(end - begin, rows_at_once(s.length)), s.length));
      dispatch<RowsBackward>(s.from_end, out, grad, in, bits.get(), s.length, begin, end);
    });
    return;
  }
  const int64_t columns = std::min(s.inner, columns_of_task(s, columns_at_once<A>(s)));
  const int64_t parts = (s.inner + columns - 1) / columns;
  const int64_t grain = std::max<int64_t>(1, kGrain / (s.length * columns));
  torch::stable::parallel_for(0, s.outer * parts, grain, [&](int64_t begin, int64_t end) {
    const auto buf = aligned_buffer<A>(padded(columns));
    const auto bits = aligned_buffer<Bits>(bits_of<A>(s.length, columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * columns, at = i / parts * s.length * s.inner + first;
      dispatch<ColumnsBackward>(s.from_end, out + at, grad + at, in + at, buf.get(), bits.get(), s,
                                std::min(columns, s.inner - first));
    }
  });
}

// Both of a planar pair's gradients, plane by plane, so that the incoming one is read from memory once.
template <typename T>
void backward_planar_pair(T* out_a, T* out_b, const T* grad, const T* a, const T* b, const Scan& down,
                          const Scan& across) {
  using A = accumulate_t<T>;
  const int64_t slab = down.length * down.inner, columns = std::min(down.inner, columns_at_once<A>(down));
  torch::stable::parallel_for(0, down.outer, std::max<int64_t>(1, kGrain / slab), [&](int64_t begin, int64_t end) {
    const auto buf = aligned_buffer<A>(padded(columns));
    const auto bits =
        aligned_buffer<Bits>(std::max(bits_of<A>(down.length, columns),
                                      bits_of<A>(std::min(down.length, rows_at_once(across.length)), across.length)));
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t at = plane * slab;
      for (int64_t x = 0; x < down.inner; x += columns) {
        dispatch<ColumnsBackward>(down.from_end, out_a + at + x, grad + at + x, a + at + x, buf.get(), bits.get(), down,
                                  std::min(columns, down.inner - x));
      }
      dispatch<RowsBackward>(down.from_end, out_b + at, grad + at, b + at, bits.get(), across.length, int64_t(0),
                             down.length);
    }
  });
}

Tensor backward_cpu(const Tensor& grad, const Tensor& input, int64_t dim, bool from_end) {
  constexpr const char* kOp = "_corner_pool_backward";
  check_input(kOp, "input", input);
  check_like(kOp, "grad", grad, "input", input);
  check_axis(kOp, dim);
  const bool last = is_channels_last(input);
  Tensor out = empty_like(input, last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const Tensor g = dense(grad, last), in = dense(input, last);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    backward(static_cast<T*>(out.mutable_data_ptr()), static_cast<const T*>(g.const_data_ptr()),
             static_cast<const T*>(in.const_data_ptr()), scan_of(in, last, dim, from_end));
  });
  return out;
}

std::tuple<Tensor, Tensor> backward_pair_cpu(const Tensor& grad, const Tensor& input_a, const Tensor& input_b,
                                             bool from_end) {
  constexpr const char* kOp = "_corner_pool_pair_backward";
  check_input(kOp, "x_a", input_a);
  check_like(kOp, "x_b", input_b, "x_a", input_a);
  check_like(kOp, "grad", grad, "x_a", input_a);
  const bool last = is_channels_last(input_a);
  Tensor out_a = empty_like(input_a, last), out_b = empty_like(input_a, last);
  if (out_a.numel() == 0) return {out_a, out_b};
  advise_huge_pages(out_a);
  advise_huge_pages(out_b);
  const Tensor g = dense(grad, last), a = dense(input_a, last), b = dense(input_b, last);
  const Scan down = scan_of(a, last, 2, from_end), across = scan_of(a, last, 3, from_end);
  dispatch_floating(a.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    T* to_a = static_cast<T*>(out_a.mutable_data_ptr());
    T* to_b = static_cast<T*>(out_b.mutable_data_ptr());
    const T* from = static_cast<const T*>(g.const_data_ptr());
    const T* x_a = static_cast<const T*>(a.const_data_ptr());
    const T* x_b = static_cast<const T*>(b.const_data_ptr());
    if (last || down.inner == 1) {  // which are both rows then
      backward(to_a, from, x_a, down);
      backward(to_b, from, x_b, across);
    } else {
      backward_planar_pair(to_a, to_b, from, x_a, x_b, down, across);
    }
  });
  return {out_a, out_b};
}

}  // namespace
}  // namespace corner_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_corner_pool_backward", TORCH_BOX(&d2proj::corner_pool::backward_cpu));
  m.impl("_corner_pool_pair_backward", TORCH_BOX(&d2proj::corner_pool::backward_pair_cpu));
}
