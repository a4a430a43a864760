// Tensors and argument checks for op entry points. The only door to torch: its stable ABI, nothing else.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace d2proj {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// An error as every op words it: "roi_align: boxes must be ..., got ...". Becomes a RuntimeError in Python.
template <typename... Args>
inline void check(bool ok, const char* op, const Args&... args) {
  if (ok) return;
  std::ostringstream message;
  message << op << ": ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ")";
  return text.str();
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t dim, const char* shape) {
  check(tensor.dim() == dim, op, name, " must have shape ", shape, ", got ", shape_of(tensor));
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  check(is_floating(tensor.scalar_type()), op, name, " must be float16, bfloat16, float32 or float64, got ",
        torch::headeronly::toString(tensor.scalar_type()));
}

// Boxes stay in float32 or float64 whatever the features are: half cannot tell neighbouring pixels apart past 2048.
inline void check_box_dtype(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, op, name, " must be float32 or float64, got ",
        torch::headeronly::toString(type));
}

inline void check_same_device(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                              const Tensor& b) {
  check(a.device() == b.device(), op, name_b, " must be on the device of ", name_a);
}

// Whether a 4-D tensor is laid out as N, H, W, C and not also as N, C, H, W (then the usual layout wins).
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty_4d(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  const int64_t sizes[4] = {n, c, h, w};
  return torch::stable::empty({sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              format_of(channels_last));
}

// Calls `body(T{})` with the C++ type of `type`, one of the four floating types.
template <typename Body>
inline void dispatch_floating(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      throw std::runtime_error("d2proj: unexpected dtype");
  }
}

// The type that sums are taken in.
template <typename T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename AccumulateIn<T>::type;

}  // namespace d2proj
