// Deformable convolution's geometry (Dai et al., 2017; Zhu et al., 2019), shared by the CPU and the CUDA kernel; no
// torch here.
//
// A convolution whose tap t does not read the pixel under it, but bilinearly at a place that an offset moves, times a
// mask (version 2). All else is a convolution: columns (the samples) times weights.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace d2proj {
namespace deform_conv2d {

struct Shape {
  int64_t images, channels, height, width;  // of the input
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;

  D2_HD int64_t taps() const { return kernel_h * kernel_w; }
  D2_HD int64_t out_pixels() const { return out_h * out_w; }  // of an image
  D2_HD int64_t pixels() const { return height * width; }
  // Channels that share a weight group, outputs of one, channels that share offsets.
  D2_HD int64_t group_channels() const { return channels / groups; }
  D2_HD int64_t group_outputs() const { return out_channels / groups; }
  D2_HD int64_t offset_channels() const { return channels / offset_groups; }
};

// Where in the offsets (N, offset_groups * taps * 2, out_h, out_w) the y offset of a sample stands; x is a plane later.
D2_HD int64_t offset_index(const Shape& s, int64_t image, int64_t group, int64_t tap, int64_t pixel) {
  return ((image * s.offset_groups + group) * s.taps() + tap) * 2 * s.out_pixels() + pixel;
}
D2_HD int64_t mask_index(const Shape& s, int64_t image, int64_t group, int64_t tap, int64_t pixel) {
  return ((image * s.offset_groups + group) * s.taps() + tap) * s.out_pixels() + pixel;
}

// The place that a sample reads: the pixel above and to the left of it, and how far beyond that it lies.
template <typename T>
struct Place {
  int64_t y, x;
  T fraction_y, fraction_x;
  bool inside;  // false: it reads zero, and has no gradient. So do NaN and infinite offsets.
};

template <typename T>
D2_HD Place<T> place_of(const Shape& s, int64_t tap, int64_t pixel, T offset_y, T offset_x) {
  const int64_t out_y = pixel / s.out_w, out_x = pixel % s.out_w;
  const T y = static_cast<T>(out_y * s.stride_h - s.pad_h + tap / s.kernel_w * s.dilation_h) + offset_y;
  const T x = static_cast<T>(out_x * s.stride_w - s.pad_w + tap % s.kernel_w * s.dilation_w) + offset_x;
  // Written as !(inside), so that NaN counts as outside. At -1 exactly the value is zero, but not its slope.
  if (!(y >= T(-1) && y < static_cast<T>(s.height) && x >= T(-1) && x < static_cast<T>(s.width))) {
    return {0, 0, T(0), T(0), false};
  }
  const T floor_y = std::floor(y), floor_x = std::floor(x);
  return {static_cast<int64_t>(floor_y), static_cast<int64_t>(floor_x), y - floor_y, x - floor_x, true};
}

// Corner i of a place is (y + i / 2, x + i % 2). Its weight, and what that changes by along y and x.
template <typename T>
D2_HD T weight_of(T fraction_y, T fraction_x, int i) {
  return (i / 2 ? fraction_y : T(1) - fraction_y) * (i % 2 ? fraction_x : T(1) - fraction_x);
}
template <typename T>
D2_HD T slope_y(T fraction_x, int i) {
  const T weight = i % 2 ? fraction_x : T(1) - fraction_x;
  return i / 2 ? weight : -weight;
}
template <typename T>
D2_HD T slope_x(T fraction_y, int i) {
  const T weight = i / 2 ? fraction_y : T(1) - fraction_y;
  return i % 2 ? weight : -weight;
}

// The pixel of corner i, or `none` where the map has ended.
D2_HD int64_t corner_pixel(const Shape& s, int64_t y, int64_t x, int i, int64_t none) {
  const int64_t row = y + i / 2, column = x + i % 2;
  return row >= 0 && row < s.height && column >= 0 && column < s.width ? row * s.width + column : none;
}

}  // namespace deform_conv2d
}  // namespace d2proj
