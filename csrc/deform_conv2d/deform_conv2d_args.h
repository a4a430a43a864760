// What the entry points of both devices check first, and the sizes that follow.
#pragma once

#include <optional>

#include "common/tensor.h"
#include "deform_conv2d/deform_conv2d.h"

namespace d2proj {
namespace deform_conv2d {

// Stride, padding and dilation, each along y and x.
struct Steps {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Pixels of the result along an axis; 0 where the kernel does not fit (then `check_forward` refuses).
inline int64_t output_length(int64_t length, int64_t pad, int64_t dilation, int64_t kernel, int64_t stride) {
  const int64_t room = length + 2 * pad - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

inline Shape check_forward(const char* op, const Tensor& input, const Tensor& weight, const Tensor& offset,
                           const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const Steps& t) {
  check_dim(op, "input", input, 4, "(N, C, H, W)");
  check_dim(op, "weight", weight, 4, "(C_out, C / groups, kernel_h, kernel_w)");
  check_dim(op, "offset", offset, 4, "(N, 2 * offset_groups * kernel_h * kernel_w, out_h, out_w)");
  check_floating(op, "input", input);
  check_floating(op, "offset", offset);
  check(weight.scalar_type() == input.scalar_type(), op, "weight must have the dtype of input, ",
        torch::headeronly::toString(input.scalar_type()), ", got ", torch::headeronly::toString(weight.scalar_type()));
  check_same_device(op, "input", input, "weight", weight);
  check_same_device(op, "input", input, "offset", offset);
  check(t.stride_h > 0 && t.stride_w > 0, op, "stride must be positive, got (", t.stride_h, ", ", t.stride_w, ")");
  check(t.pad_h >= 0 && t.pad_w >= 0, op, "padding must not be negative, got (", t.pad_h, ", ", t.pad_w, ")");
  check(t.dilation_h > 0 && t.dilation_w > 0, op, "dilation must be positive, got (", t.dilation_h, ", ", t.dilation_w,
        ")");
  // Sizes far beyond any memory, so that no product below leaves 64 bits.
  constexpr int64_t kMost = int64_t(1) << 30;
  for (const int64_t v : {t.stride_h, t.stride_w, t.pad_h, t.pad_w, t.dilation_h, t.dilation_w, weight.size(2),
                          weight.size(3), input.size(2), input.size(3)}) {
    check(v <= kMost, op, "sizes must be at most ", kMost, ", got ", v);
  }

  Shape s{};
  s.images = input.size(0), s.channels = input.size(1), s.height = input.size(2), s.width = input.size(3);
  s.out_channels = weight.size(0), s.kernel_h = weight.size(2), s.kernel_w = weight.size(3);
  s.stride_h = t.stride_h, s.stride_w = t.stride_w, s.pad_h = t.pad_h, s.pad_w = t.pad_w;
  s.dilation_h = t.dilation_h, s.dilation_w = t.dilation_w;
  check(s.taps() > 0, op, "weight must have a kernel of at least one tap, got ", shape_of(weight));
  check(s.channels > 0 && weight.size(1) > 0 && s.channels % weight.size(1) == 0, op,
        "weight.size(1) must divide input's channels, ", s.channels, ", got ", weight.size(1));
  s.groups = s.channels / weight.size(1);
  check(s.out_channels % s.groups == 0, op, "weight.size(0) must be a multiple of the ", s.groups, " groups, got ",
        s.out_channels);
  check(offset.size(1) > 0 && offset.size(1) % (2 * s.taps()) == 0, op,
        "offset.size(1) must be a positive multiple of 2 * kernel_h * kernel_w, ", 2 * s.taps(), ", got ",
        offset.size(1));
  s.offset_groups = offset.size(1) / (2 * s.taps());
  check(s.channels % s.offset_groups == 0, op, "the ", s.offset_groups, " offset groups must divide input's channels, ",
        s.channels);
  s.out_h = output_length(s.height, s.pad_h, s.dilation_h, s.kernel_h, s.stride_h);
  s.out_w = output_length(s.width, s.pad_w, s.dilation_w, s.kernel_w, s.stride_w);
  check(s.out_h > 0 && s.out_w > 0, op, "the kernel is larger than the padded input, ", shape_of(input));
  check(offset.size(0) == s.images && offset.size(2) == s.out_h && offset.size(3) == s.out_w, op,
        "offset must have shape (", s.images, ", ", offset.size(1), ", ", s.out_h, ", ", s.out_w, "), got ",
        shape_of(offset));
  if (mask) {
    check_dim(op, "mask", *mask, 4, "(N, offset_groups * kernel_h * kernel_w, out_h, out_w)");
    check_floating(op, "mask", *mask);
    check_same_device(op, "input", input, "mask", *mask);
    check(mask->size(0) == s.images && mask->size(1) == s.offset_groups * s.taps() && mask->size(2) == s.out_h &&
              mask->size(3) == s.out_w,
          op, "mask must have shape (", s.images, ", ", s.offset_groups * s.taps(), ", ", s.out_h, ", ", s.out_w,
          "), got ", shape_of(*mask));
  }
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == s.out_channels, op, "bias must have shape (", s.out_channels, ",), got ",
          shape_of(*bias));
    check(bias->scalar_type() == input.scalar_type(), op, "bias must have the dtype of input, ",
          torch::headeronly::toString(input.scalar_type()), ", got ", torch::headeronly::toString(bias->scalar_type()));
    check_same_device(op, "input", input, "bias", *bias);
  }
  return s;
}

inline Shape check_backward(const char* op, const Tensor& grad, const Tensor& input, const Tensor& weight,
                            const Tensor& offset, const std::optional<Tensor>& mask, const Steps& steps) {
  const Shape s = check_forward(op, input, weight, offset, mask, std::nullopt, steps);
  check_dim(op, "grad", grad, 4, "(N, C_out, out_h, out_w)");
  check(grad.scalar_type() == input.scalar_type(), op, "grad must have the dtype of input, ",
        torch::headeronly::toString(input.scalar_type()), ", got ", torch::headeronly::toString(grad.scalar_type()));
  check_same_device(op, "input", input, "grad", grad);
  check(
      grad.size(0) == s.images && grad.size(1) == s.out_channels && grad.size(2) == s.out_h && grad.size(3) == s.out_w,
      op, "grad must have shape (", s.images, ", ", s.out_channels, ", ", s.out_h, ", ", s.out_w, "), got ",
      shape_of(grad));
  return s;
}

// Contiguous, in the type that the kernels compute in: offsets and masks may come in any floating type.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

// The result for an argument that needs no gradient.
inline Tensor nothing(const Tensor& like) {
  const int64_t none = 0;
  return torch::stable::new_empty(like, {&none, 1});
}

}  // namespace deform_conv2d
}  // namespace d2proj
