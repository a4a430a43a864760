// Corner pooling's backward pass on the CPU. A scan again finds where the running maximum was replaced; then, walking
// back, the gradient is summed and left at each such place. Each task owns what it writes.
#include "corner_pool/corner_pool_cpu.h"

namespace d2proj {
namespace corner_pool {
namespace {

// `count` columns. The first walk leaves the running maxima in `out`, where the second finds them before it writes.
struct ColumnsBackward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* grad, const T* in, A* sum, const Scan& s, int64_t count) {
    scan_columns<L>(out, in, sum, s, s.inner, count);
    for (int64_t j = 0; j < count; ++j) sum[j] = A(0);
    for (int64_t i = s.length - 1; i > 0; --i) {
      const int64_t at = s.at(i) * s.inner;
      step_back<L>(out + at, out + s.at(i - 1) * s.inner, grad + at, in + at, sum, count);
    }
    const int64_t at = s.at(0) * s.inner;
    for (int64_t j = 0; j < count; ++j) out[at + j] = static_cast<T>(sum[j] + static_cast<A>(grad[at + j]));
  }

  template <Level L, typename T, typename A>
  static D2_INLINE void step_back(T* D2_RESTRICT out, const T* D2_RESTRICT before, const T* D2_RESTRICT grad,
                                  const T* D2_RESTRICT in, A* D2_RESTRICT sum, int64_t count) {
    int64_t j = 0;
    for (; j + kWidth<A> <= count; j += kWidth<A>) {
      vector_t<A> value, best, share, total;
      load_vector<L>(value, in + j);
      load_vector<L>(best, before + j);
      load_vector<L>(share, grad + j);
      simd::load(total, sum + j);
      total += share;
      settle<L>(share, total, value, best);
      store_vector<L>(out + j, share);
      simd::store(sum + j, total);
    }
    for (; j < count; ++j) {
      const A total = sum[j] + static_cast<A>(grad[j]);
      const bool mine = replaces(static_cast<A>(in[j]), static_cast<A>(before[j]));
      out[j] = static_cast<T>(mine ? total : A(0));
      sum[j] = mine ? A(0) : total;
    }
  }
};

// Up to 64 bytes' worth of rows; `buf` holds them three times: values, running maxima, gradients.
struct RowsBackward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(T* out, const T* grad, const T* in, A* buf, const Scan& s, int64_t rows) {
    constexpr int64_t kRows = simd::Wide<A>::kLanes;
    A* bests = buf + s.length * kRows;
    A* sums = bests + s.length * kRows;
    turn_in<L>(buf, in, s.length, rows, s.length);
    turn_in<L>(sums, grad, s.length, rows, s.length);
    const int64_t step = s.from_end ? -kRows : kRows;
    for (int64_t half = 0; half < kRows; half += kWidth<A>) {
      int64_t at = s.at(0) * kRows + half;
      vector_t<A> best, value, share, sum = {};
      simd::load(best, buf + at);
      simd::store(bests + at, best);
      for (int64_t i = 1; i < s.length; ++i) {
        at += step;
        simd::load(value, buf + at);
        take<L>(best, value);
        simd::store(bests + at, best);
      }
      for (int64_t i = s.length - 1; i > 0; --i, at -= step) {
        simd::load(value, buf + at);
        simd::load(best, bests + at - step);
        simd::load(share, sums + at);
        sum += share;
        settle<L>(share, sum, value, best);
        simd::store(sums + at, share);
      }
      simd::load(share, sums + at);
      simd::store(sums + at, sum + share);
    }
    turn_out<L>(out, sums, s.length, rows, s.length);
  }
};

// Columns of which three maps fit into the second-level cache.
template <typename T>
int64_t columns_that_fit(const Scan& s) {
  const int64_t fit = (int64_t(1) << 17) / static_cast<int64_t>(sizeof(T)) / s.length;
  return std::max<int64_t>(64, fit / 64 * 64);
}

template <typename T>
void backward(T* out, const T* grad, const T* in, const Scan& s) {
  using A = accumulate_t<T>;
  if (s.inner == 1) {
    constexpr int64_t kRows = simd::Wide<A>::kLanes;
    const int64_t tasks = (s.outer + kRows - 1) / kRows;
    const int64_t grain = std::max<int64_t>(1, kGrain / (kRows * s.length));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      const auto buf = aligned_buffer<A>(3 * s.length * kRows);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i * kRows, at = row * s.length;
        simd::dispatch<RowsBackward>(out + at, grad + at, in + at, buf.get(), s, std::min(kRows, s.outer - row));
      }
    });
    return;
  }
  const int64_t columns = columns_of_task(s, columns_that_fit<T>(s));
  const int64_t parts = (s.inner + columns - 1) / columns;
  const int64_t cost = s.length * std::min(s.inner, columns);
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  torch::stable::parallel_for(0, s.outer * parts, grain, [&](int64_t begin, int64_t end) {
    const auto sum = aligned_buffer<A>(std::min(s.inner, columns));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * columns, at = i / parts * s.length * s.inner + first;
      simd::dispatch<ColumnsBackward>(out + at, grad + at, in + at, sum.get(), s, std::min(columns, s.inner - first));
    }
  });
}

// Both of a planar pair's gradients, plane by plane, so that the incoming one is read from memory once.
template <typename T>
void backward_planar_pair(T* out_a, T* out_b, const T* grad, const T* a, const T* b, const Scan& down,
                          const Scan& across) {
  using A = accumulate_t<T>;
  constexpr int64_t kRows = simd::Wide<A>::kLanes;
  const int64_t slab = down.length * down.inner, columns = columns_that_fit<T>(down);
  torch::stable::parallel_for(0, down.outer, std::max<int64_t>(1, kGrain / slab), [&](int64_t begin, int64_t end) {
    const auto buf = aligned_buffer<A>(std::max(3 * across.length * kRows, columns));
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t at = plane * slab;
      for (int64_t x = 0; x < down.inner; x += columns) {
        simd::dispatch<ColumnsBackward>(out_a + at + x, grad + at + x, a + at + x, buf.get(), down,
                                        std::min(columns, down.inner - x));
      }
      for (int64_t y = 0; y < down.length; y += kRows) {
        const int64_t row = at + y * down.inner;
        simd::dispatch<RowsBackward>(out_b + row, grad + row, b + row, buf.get(), across,
                                     std::min(kRows, down.length - y));
      }
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
    if (last) {
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
