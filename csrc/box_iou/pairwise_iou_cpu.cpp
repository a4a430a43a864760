// The pairwise functions of the IoU family on the CPU.
//
// The boxes of the second argument become columns, one array a field; the boxes of the first are rows, turned 64 at a
// time. A row meets as many columns at once as a vector has lanes. Backward, a task owns a fixed group of rows and sums
// the columns' gradients of its rows apart; the groups are then added in order, so threads do not show in the result.
#include <algorithm>
#include <cstring>
#include <tuple>

#include "box_iou/box_iou_args.h"
#include "box_iou/box_iou_lanes.h"
#include "common/map.h"

namespace d2proj {
namespace iou {
namespace {

constexpr int64_t kRows = 64;      // of a tile
constexpr int64_t kColumns = 512;  // of a tile; its fields lie in the first-level cache
constexpr int kFields = 6;

// Fields of boxes, one array each: field f of box i at data[f * stride + i].
template <typename T>
struct Table {
  T* data;
  int64_t stride;

  Table from(int64_t box) const { return {data + box, stride}; }
};

int64_t padded(int64_t count) { return (count + kMostLanes - 1) / kMostLanes * kMostLanes; }

template <Kind K, simd::Level L, typename T>
D2_INLINE void fill_table(const T* boxes, int64_t count, Format format, const Table<T>& table) {
  using Lane = Lanes<L, T>;
  using V = typename Lane::V;
  for (int64_t i = 0; i < count; i += Lane::kCount) {
    Numbers<V> numbers;
    Fields<V> fields;
    Lane::load_some_boxes(boxes + 4 * i, count - i, numbers);
    make_fields<K, V>(numbers, format, fields);
    T* const to = table.data + i;
    simd::store(to, fields.x1);
    simd::store(to + table.stride, fields.y1);
    simd::store(to + 2 * table.stride, fields.x2);
    simd::store(to + 3 * table.stride, fields.y2);
    simd::store(to + 4 * table.stride, fields.area);
    if constexpr (K == Kind::kComplete) simd::store(to + 5 * table.stride, fields.angle);
  }
}

template <Kind K>
struct FillTable {
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* boxes, int64_t count, Format format, const Table<T>& table) {
    fill_table<K, L, T>(boxes, count, format, table);
  }
};

template <Kind K, typename V, typename T>
D2_INLINE void load_fields(const Table<T>& table, Fields<V>& fields) {
  simd::load(fields.x1, table.data);
  simd::load(fields.y1, table.data + table.stride);
  simd::load(fields.x2, table.data + 2 * table.stride);
  simd::load(fields.y2, table.data + 3 * table.stride);
  simd::load(fields.area, table.data + 4 * table.stride);
  if constexpr (K == Kind::kComplete) simd::load(fields.angle, table.data + 5 * table.stride);
}

// One box in every lane.
template <Kind K, typename V, typename T>
D2_INLINE void spread_fields(const Table<T>& table, Fields<V>& fields) {
  fields.x1 = V{} + table.data[0];
  fields.y1 = V{} + table.data[table.stride];
  fields.x2 = V{} + table.data[2 * table.stride];
  fields.y2 = V{} + table.data[3 * table.stride];
  fields.area = V{} + table.data[4 * table.stride];
  if constexpr (K == Kind::kComplete) fields.angle = V{} + table.data[5 * table.stride];
}

// Adds to what a table holds.
template <Kind K, typename V, typename T>
D2_INLINE void add_fields(const Table<T>& table, const Fields<V>& fields) {
  const auto add = [](T* to, const V& value) __attribute__((always_inline)) {
    V sum;
    simd::load(sum, to);
    sum += value;
    simd::store(to, sum);
  };
  add(table.data, fields.x1);
  add(table.data + table.stride, fields.y1);
  add(table.data + 2 * table.stride, fields.x2);
  add(table.data + 3 * table.stride, fields.y2);
  add(table.data + 4 * table.stride, fields.area);
  if constexpr (K == Kind::kComplete) add(table.data + 5 * table.stride, fields.angle);
}

template <Kind K>
struct ForwardTile {
  // `end` is the first number past `out` that belongs to another task.
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* boxes, int64_t rows, const Table<T>& table, int64_t columns, Format format, T eps,
                            T* out, int64_t out_stride, const T* end) {
    using Lane = Lanes<L, T>;
    using V = typename Lane::V;
    alignas(64) T row_memory[kFields * kRows];
    const Table<T> row_table{row_memory, kRows};
    fill_table<K, L, T>(boxes, rows, format, row_table);
    for (int64_t i = 0; i < rows; ++i) {
      Fields<V> a, b;
      spread_fields<K, V, T>(row_table.from(i), a);
      T* const to = out + i * out_stride;
      for (int64_t j = 0; j < columns; j += Lane::kCount) {
        load_fields<K, V, T>(table.from(j), b);
        Pair<K, false, V> pair;
        pair.measure(a, b, eps);
        const V value = pair.similarity();
        // A whole vector may run over into the next row, which this task writes later.
        if (j + Lane::kCount <= columns || to + j + Lane::kCount <= end) {
          simd::store(to + j, value);
        } else {
          Lane::store_some(to + j, columns - j, value);
        }
      }
    }
  }
};

template <Kind K>
struct BackwardTile {
  // Adds the tile's share to `grad_rows` and `grad_columns`.
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* grad, int64_t grad_stride, const Table<T>& row_table, int64_t rows,
                            const Table<T>& table, int64_t columns, T eps, const Table<T>& grad_rows,
                            const Table<T>& grad_columns) {
    using Lane = Lanes<L, T>;
    using V = typename Lane::V;
    for (int64_t i = 0; i < rows; ++i) {
      Fields<V> a, b, to_a, to_b, sum{};
      spread_fields<K, V, T>(row_table.from(i), a);
      for (int64_t j = 0; j < columns; j += Lane::kCount) {
        load_fields<K, V, T>(table.from(j), b);
        V g;
        Lane::load_some(grad + i * grad_stride + j, columns - j, g);
        Pair<K, false, V> pair;
        pair.measure(a, b, eps);
        pair.differentiate(a, b, g, to_a, to_b);
        add_fields<K, V, T>(grad_columns.from(j), to_b);
        sum.x1 += to_a.x1;
        sum.y1 += to_a.y1;
        sum.x2 += to_a.x2;
        sum.y2 += to_a.y2;
        sum.area += to_a.area;
        if constexpr (K == Kind::kComplete) sum.angle += to_a.angle;
      }
      T* const to = grad_rows.data + i;
      to[0] += Lane::sum(sum.x1);
      to[grad_rows.stride] += Lane::sum(sum.y1);
      to[2 * grad_rows.stride] += Lane::sum(sum.x2);
      to[3 * grad_rows.stride] += Lane::sum(sum.y2);
      to[4 * grad_rows.stride] += Lane::sum(sum.area);
      if constexpr (K == Kind::kComplete) to[5 * grad_rows.stride] += Lane::sum(sum.angle);
    }
  }
};

// Gradients of boxes' numbers from those of their fields.
template <Kind K>
struct Finish {
  template <simd::Level L, typename T>
  static D2_INLINE void run(const T* boxes, int64_t count, Format format, const Table<T>& grads, T* out) {
    using Lane = Lanes<L, T>;
    using V = typename Lane::V;
    for (int64_t i = 0; i < count; i += Lane::kCount) {
      Numbers<V> numbers, result;
      Fields<V> fields;
      Lane::load_some_boxes(boxes + 4 * i, count - i, numbers);
      load_fields<K, V, T>(grads.from(i), fields);
      gradient_of_numbers<K, V>(numbers, format, fields, result);
      Lane::store_some_boxes(out + 4 * i, count - i, result);
    }
  }
};

// Runs `body(begin, end)` over tasks, on the calling thread where there is one.
template <typename Body>
void for_tasks(int64_t tasks, const Body& body) {
  if (tasks < 2) return body(0, tasks);
  torch::stable::parallel_for(0, tasks, 1, body);
}

Tensor pairwise_cpu(const Tensor& boxes1, const Tensor& boxes2, int64_t kind, int64_t format, double eps) {
  const Sizes s = check_pairwise(pairwise_name(kind), boxes1, boxes2, kind, format);
  Tensor out = empty_after(boxes1, 2, {s.rows, s.columns});
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const Tensor dense1 = torch::stable::contiguous(boxes1), dense2 = torch::stable::contiguous(boxes2);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    constexpr Kind K = decltype(constant)::value;
    const Format form = static_cast<Format>(format);
    const T *from1 = static_cast<const T*>(dense1.const_data_ptr()),
            *from2 = static_cast<const T*>(dense2.const_data_ptr());
    T* const to = static_cast<T*>(out.mutable_data_ptr());
    const int64_t stride = padded(s.columns);
    const auto memory = aligned_buffer<T>(s.batch * kFields * stride);
    const auto table = [&](int64_t n) { return Table<T>{memory.get() + n * kFields * stride, stride}; };
    for (int64_t n = 0; n < s.batch; ++n) {
      simd::dispatch<FillTable<K>>(from2 + 4 * n * s.columns, s.columns, form, table(n));
    }
    const int64_t across = (s.columns + kColumns - 1) / kColumns, down = (s.rows + kRows - 1) / kRows;
    for_tasks(s.batch * down * across, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / (down * across), row = task / across % down * kRows, column = task % across * kColumns;
        const int64_t rows = std::min(kRows, s.rows - row), columns = std::min(kColumns, s.columns - column);
        T* const tile = to + (n * s.rows + row) * s.columns + column;
        // Only a tile of whole rows is followed by memory of its own.
        const T* const last = across == 1 ? tile + rows * s.columns : tile;
        simd::dispatch<ForwardTile<K>>(from1 + 4 * (n * s.rows + row), rows, table(n).from(column), columns, form,
                                       static_cast<T>(eps), tile, s.columns, last);
      }
    });
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return out;
}

// Rows of a group: enough that its own copy of the columns' gradients is small beside the gradient that it reads, and
// a number that depends on the sizes alone.
int64_t group_rows(const Sizes& s) {
  const int64_t enough = std::max<int64_t>(kRows, 65536 / s.columns);
  return std::max(enough, (s.rows + 15) / 16);
}

std::tuple<Tensor, Tensor> pairwise_backward_cpu(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                                 int64_t kind, int64_t format, double eps) {
  const char* const op = pairwise_name(kind);
  const Sizes s = check_pairwise(op, boxes1, boxes2, kind, format);
  check_grad(op, grad, boxes1);
  check_pairwise_grad(op, grad, s);
  Tensor grad1 = empty_after(boxes1, 0, {}), grad2 = empty_after(boxes2, 0, {});
  if (grad.numel() == 0) return {torch::stable::zero_(grad1), torch::stable::zero_(grad2)};
  const Tensor dense = torch::stable::contiguous(grad);
  const Tensor dense1 = torch::stable::contiguous(boxes1), dense2 = torch::stable::contiguous(boxes2);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    constexpr Kind K = decltype(constant)::value;
    const Format form = static_cast<Format>(format);
    const T* const from = static_cast<const T*>(dense.const_data_ptr());
    const T *from1 = static_cast<const T*>(dense1.const_data_ptr()),
            *from2 = static_cast<const T*>(dense2.const_data_ptr());
    T *to1 = static_cast<T*>(grad1.mutable_data_ptr()), *to2 = static_cast<T*>(grad2.mutable_data_ptr());
    const int64_t stride = padded(s.columns), per_group = group_rows(s);
    const int64_t groups = (s.rows + per_group - 1) / per_group;
    // For each image the columns' fields, then for each of its groups their gradients.
    const auto memory = aligned_buffer<T>(s.batch * (1 + groups) * kFields * stride);
    const auto table = [&](int64_t n, int64_t which) {
      return Table<T>{memory.get() + (n * (1 + groups) + which) * kFields * stride, stride};
    };
    for (int64_t n = 0; n < s.batch; ++n) {
      simd::dispatch<FillTable<K>>(from2 + 4 * n * s.columns, s.columns, form, table(n, 0));
    }
    for_tasks(s.batch * groups, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / groups, group = task % groups;
        const Table<T> grad_columns = table(n, 1 + group);
        std::fill_n(grad_columns.data, kFields * stride, T(0));
        const int64_t last = std::min(s.rows, (group + 1) * per_group);
        for (int64_t row = group * per_group; row < last; row += kRows) {
          const int64_t rows = std::min(kRows, last - row);
          alignas(64) T row_memory[kFields * kRows], grad_memory[kFields * kRows] = {};
          const Table<T> row_table{row_memory, kRows}, grad_rows{grad_memory, kRows};
          const T* const row_boxes = from1 + 4 * (n * s.rows + row);
          simd::dispatch<FillTable<K>>(row_boxes, rows, form, row_table);
          for (int64_t column = 0; column < s.columns; column += kColumns) {
            simd::dispatch<BackwardTile<K>>(from + (n * s.rows + row) * s.columns + column, s.columns, row_table, rows,
                                            table(n, 0).from(column), std::min(kColumns, s.columns - column),
                                            static_cast<T>(eps), grad_rows, grad_columns.from(column));
          }
          simd::dispatch<Finish<K>>(row_boxes, rows, form, grad_rows, to1 + 4 * (n * s.rows + row));
        }
      }
    });
    for (int64_t n = 0; n < s.batch; ++n) {
      const Table<T> total = table(n, 1);
      for (int64_t group = 1; group < groups; ++group) {
        const T* const more = table(n, 1 + group).data;
        for (int64_t i = 0; i < kFields * stride; ++i) total.data[i] += more[i];
      }
      simd::dispatch<Finish<K>>(from2 + 4 * n * s.columns, s.columns, form, total, to2 + 4 * n * s.columns);
    }
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return {grad1, grad2};
}

}  // namespace
}  // namespace iou
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("pairwise_box_iou", TORCH_BOX(&d2proj::iou::pairwise_cpu));
  m.impl("_pairwise_box_iou_backward", TORCH_BOX(&d2proj::iou::pairwise_backward_cpu));
}
