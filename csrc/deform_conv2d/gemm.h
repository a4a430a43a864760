// A small matrix product for SIMD levels: C (rows x lanes) += or = A (rows x depth) B (depth x lanes).
//
// B and C are panels of 64 bytes of lanes, B's rows one after the other. A is read element by element with any strides.
// An element of C is one chain of multiply-adds in the order of the depth, so its bits do not depend on how rows and
// panels are cut. Rows are computed a whole tile at a time: A and C must be readable and writable up to
// `padded_rows(rows)`.
#pragma once

#include "common/simd.h"

namespace d2proj {
namespace deform_conv2d {

using simd::Level;
using simd::Wide;

// The largest tile: 12 rows of two panels are 24 of AVX-512's 32 registers, 6 of one are 12 of AVX2's 16.
constexpr int64_t kTileRows = 12;
inline int64_t padded_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

template <typename A>
struct Product {
  A* c;
  int64_t c_row, c_panel;
  const A* a;
  int64_t a_row, a_depth, a_run;
  const A* b;
  int64_t b_panel;
  int64_t runs, length;  // the depth is `runs` times `length`; A's runs are a_run apart
  bool accumulate;
};

template <typename A, int kRows, int kPanels>
D2_INLINE void multiply_tile(const Product<A>& f, int64_t row, int64_t panel) {
  using V = typename Wide<A>::type;
  constexpr int64_t kLanes = Wide<A>::kLanes;
  V sum[kRows][kPanels];
  A* c = f.c + row * f.c_row + panel * f.c_panel;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanels; ++v) {
      if (f.accumulate) {
        simd::load(sum[r][v], c + r * f.c_row + v * f.c_panel);
      } else {
        sum[r][v] = V{};
      }
    }
  }
  const A* b = f.b + panel * f.b_panel;
  for (int64_t run = 0; run < f.runs; ++run) {
    // A pointer for every three rows: more would not fit the registers.
    const A* a[(kRows + 2) / 3];
#pragma GCC unroll 4
    for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] = f.a + run * f.a_run + (row + 3 * i) * f.a_row;
    for (int64_t k = 0; k < f.length; ++k) {
      V lanes[kPanels];
#pragma GCC unroll 2
      for (int v = 0; v < kPanels; ++v) simd::load(lanes[v], b + v * f.b_panel);
      b += kLanes;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const A each = a[r / 3][r % 3 * f.a_row];
#pragma GCC unroll 2
        for (int v = 0; v < kPanels; ++v) sum[r][v] += each * lanes[v];
      }
#pragma GCC unroll 4
      for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] += f.a_depth;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanels; ++v) simd::store(c + r * f.c_row + v * f.c_panel, sum[r][v]);
  }
}

template <typename A, int kRows, int kPanels>
D2_INLINE void multiply_panels(const Product<A>& f, int64_t rows, int64_t panel) {
  int64_t row = 0;
  for (; row + kRows * 2 / 3 < rows; row += kRows) multiply_tile<A, kRows, kPanels>(f, row, panel);
  for (; row < rows; row += kRows / 3) multiply_tile<A, kRows / 3, kPanels>(f, row, panel);
}

template <Level L, typename A>
D2_INLINE void multiply(const Product<A>& f, int64_t rows, int64_t panels) {
  int64_t panel = 0;
  if constexpr (L == Level::kAvx512) {
    for (; panel + 2 <= panels; panel += 2) multiply_panels<A, 12, 2>(f, rows, panel);
    if (panel < panels) multiply_panels<A, 12, 1>(f, rows, panel);
  } else {
    constexpr int kRows = L == Level::kAvx2 ? 6 : 3;
    for (; panel < panels; ++panel) multiply_panels<A, kRows, 1>(f, rows, panel);
  }
}

}  // namespace deform_conv2d
}  // namespace d2proj
