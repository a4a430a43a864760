// Deformable convolution on CUDA.
//
// Samples are written as columns, some output pixels at a time, and multiplied by torch's product (cuBLAS). Everything
// is channels-last: neighbouring threads read neighbouring channels of a corner, 16 bytes each, and a column is written
// as it is read. A block first works out the corners of some samples in shared memory, then all its threads share
// their channels. Backward adds with atomics, into float32 for half types; on the deterministic path every sample's
// corners are sorted by the pixel that they fall on, and a warp sums those of a pixel in order.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <type_traits>

#include "common/cuda.h"
#include "common/launch.cuh"
#include "common/scratch.cuh"
#include "deform_conv2d/deform_conv2d.h"
#include "deform_conv2d/deform_conv2d_args.h"

namespace d2proj {
namespace deform_conv2d {
namespace {

constexpr int kWarp = 32;
constexpr int kSamples = 64;                         // of a block
constexpr int64_t kColumnBytes = int64_t(64) << 20;  // of columns, and as much again of their gradients

// The output pixels at hand, counted through all images, and their samples: pixel, tap, offset group (the fastest).
struct Chunk {
  int64_t first, count;

  D2_HD int64_t samples(const Shape& s) const { return count * s.taps() * s.offset_groups; }
};

// A sample as the threads of a block see it. `pixel` is a corner's in the whole input, negative where the map has
// ended.
template <typename A>
struct Sample {
  int64_t pixel[4];
  int64_t offset, mask;  // where its offset (along y) and its mask stand
  int64_t column;        // its first channel in the columns of one weight group
  int64_t channel;       // the first of its offset group
  A fraction_y, fraction_x, factor;
};

template <typename A>
__device__ Sample<A> make_sample(const Shape& s, const Chunk& chunk, int64_t index, const A* offset, const A* mask) {
  const int64_t group = index % s.offset_groups, tap = index / s.offset_groups % s.taps();
  const int64_t in_chunk = index / (s.offset_groups * s.taps());
  const int64_t image = (chunk.first + in_chunk) / s.out_pixels(), pixel = (chunk.first + in_chunk) % s.out_pixels();
  Sample<A> sample;
  sample.offset = offset_index(s, image, group, tap, pixel);
  sample.mask = mask_index(s, image, group, tap, pixel);
  sample.column = (in_chunk * s.taps() + tap) * s.group_channels();
  sample.channel = group * s.offset_channels();
  const Place<A> place = place_of<A>(s, tap, pixel, offset[sample.offset], offset[sample.offset + s.out_pixels()]);
  for (int k = 0; k < 4; ++k) {
    const int64_t corner = place.inside ? corner_pixel(s, place.y, place.x, k, -1) : -1;
    sample.pixel[k] = corner < 0 ? -1 : image * s.pixels() + corner;
  }
  sample.fraction_y = place.fraction_y, sample.fraction_x = place.fraction_x;
  sample.factor = mask ? mask[sample.mask] : A(1);
  return sample;
}

// Where channel c of a sample stands in the columns, [weight group][pixel][tap][channel of the group].
__device__ __forceinline__ int64_t column_index(const Shape& s, const Chunk& chunk, int64_t column, int64_t c) {
  if (s.groups == 1) return column + c;
  const int64_t group = c / s.group_channels();
  return group * chunk.count * s.taps() * s.group_channels() + column + c % s.group_channels();
}

template <typename A>
__device__ __forceinline__ void make_samples(Sample<A>* samples, int count, const Shape& s, const Chunk& chunk,
                                             int64_t first, const A* offset, const A* mask) {
  if (threadIdx.x < count) samples[threadIdx.x] = make_sample(s, chunk, first + threadIdx.x, offset, mask);
  __syncthreads();
}

template <typename A>
__device__ __forceinline__ int samples_of_block(const Shape& s, const Chunk& chunk) {
  const int64_t left = chunk.samples(s) - static_cast<int64_t>(blockIdx.x) * kSamples;
  return static_cast<int>(left < kSamples ? left : kSamples);
}

template <typename T, typename A, int kVec>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(const T* __restrict__ input, const A* __restrict__ offset, const A* __restrict__ mask,
                   T* __restrict__ columns, Shape s, Chunk chunk) {
  using Lanes = Pack<T, kVec>;
  __shared__ Sample<A> samples[kSamples];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSamples;
  const int count = samples_of_block<A>(s, chunk);
  make_samples(samples, count, s, chunk, first, offset, mask);
  const uint32_t vectors = static_cast<uint32_t>(s.offset_channels() / kVec);
  // The entry points have checked that this product is far from 2^32.
  for (uint32_t i = threadIdx.x; i < count * vectors; i += kThreads) {
    const Sample<A>& sample = samples[i / vectors];
    const int64_t c = sample.channel + static_cast<int64_t>(i % vectors) * kVec;
    A sum[kVec] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (sample.pixel[k] < 0) continue;
      const A weight = weight_of(sample.fraction_y, sample.fraction_x, k);
      const Lanes corner = *reinterpret_cast<const Lanes*>(input + sample.pixel[k] * s.channels + c);
#pragma unroll
      for (int v = 0; v < kVec; ++v) sum[v] += weight * static_cast<A>(corner.lane[v]);
    }
    Lanes result;
#pragma unroll
    for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(sum[v] * sample.factor);
    *reinterpret_cast<Lanes*>(columns + column_index(s, chunk, sample.column, c)) = result;
  }
}

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// From the columns' gradient: offsets' and mask's (a warp a sample), and, if `grad_input`, the input's, with atomics.
template <typename T, typename A, int kVec>
__global__ void __launch_bounds__(kThreads)
    places_kernel(const T* __restrict__ grad_columns, const T* __restrict__ input, const A* __restrict__ offset,
                  const A* __restrict__ mask, A* __restrict__ grad_input, A* __restrict__ grad_offset,
                  A* __restrict__ grad_mask, Shape s, Chunk chunk) {
  using Lanes = Pack<T, kVec>;
  __shared__ Sample<A> samples[kSamples];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSamples;
  const int count = samples_of_block<A>(s, chunk);
  make_samples(samples, count, s, chunk, first, offset, mask);
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < count; i += kThreads / kWarp) {  // the same for all lanes of a warp
    const Sample<A>& sample = samples[i];
    const int64_t end = sample.channel + s.offset_channels();
    A dot[4] = {};
    for (int64_t c = sample.channel + lane * kVec; c < end; c += kWarp * kVec) {
      const Lanes from = *reinterpret_cast<const Lanes*>(grad_columns + column_index(s, chunk, sample.column, c));
      A grad[kVec];
#pragma unroll
      for (int v = 0; v < kVec; ++v) grad[v] = static_cast<A>(from.lane[v]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (sample.pixel[k] < 0) continue;
        const int64_t at = sample.pixel[k] * s.channels + c;
        if (grad_offset || grad_mask) {
          const Lanes corner = *reinterpret_cast<const Lanes*>(input + at);
#pragma unroll
          for (int v = 0; v < kVec; ++v) dot[k] += grad[v] * static_cast<A>(corner.lane[v]);
        }
        if (grad_input) {
          const A weight = weight_of(sample.fraction_y, sample.fraction_x, k) * sample.factor;
          if (weight != A(0)) atomic_add<A, kVec>(grad_input + at, grad, weight);
        }
      }
    }
    if (!grad_offset && !grad_mask) continue;
    A along_y = A(0), along_x = A(0), value = A(0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      along_y += slope_y(sample.fraction_x, k) * dot[k];
      along_x += slope_x(sample.fraction_y, k) * dot[k];
      value += weight_of(sample.fraction_y, sample.fraction_x, k) * dot[k];
    }
    along_y = warp_sum(along_y), along_x = warp_sum(along_x), value = warp_sum(value);
    if (lane != 0) continue;
    if (grad_offset) {
      grad_offset[sample.offset] = sample.factor * along_y;
      grad_offset[sample.offset + s.out_pixels()] = sample.factor * along_x;
    }
    if (grad_mask) grad_mask[sample.mask] = value;
  }
}

// ---- deterministic gradient of the input ----

constexpr uint64_t kNowhere = ~uint64_t(0);

// For corner k of sample i, at entry 4 * i + k: the pixel and offset group that it falls on, its weight, its number.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    entries_kernel(const A* __restrict__ offset, const A* __restrict__ mask, uint64_t* __restrict__ keys,
                   uint32_t* __restrict__ entries, A* __restrict__ weights, Shape s, Chunk chunk) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= chunk.samples(s)) return;
  const Sample<A> sample = make_sample(s, chunk, i, offset, mask);
  for (int k = 0; k < 4; ++k) {
    const int64_t entry = 4 * i + k;
    keys[entry] =
        sample.pixel[k] < 0 ? kNowhere : static_cast<uint64_t>(sample.pixel[k]) * s.offset_groups + i % s.offset_groups;
    entries[entry] = static_cast<uint32_t>(entry);
    weights[entry] = weight_of(sample.fraction_y, sample.fraction_x, k) * sample.factor;
  }
}

// The warp of the first of equal keys adds all of them, in order, to their pixel.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    ordered_kernel(const T* __restrict__ grad_columns, const uint64_t* __restrict__ keys,
                   const uint32_t* __restrict__ entries, const A* __restrict__ weights, A* __restrict__ grad_input,
                   Shape s, Chunk chunk) {
  const int64_t total = 4 * chunk.samples(s);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (begin >= total) return;
  const uint64_t key = keys[begin];
  if (key == kNowhere || (begin > 0 && keys[begin - 1] == key)) return;
  const int64_t pixel = static_cast<int64_t>(key) / s.offset_groups;
  const int64_t first = static_cast<int64_t>(key) % s.offset_groups * s.offset_channels();
  for (int64_t c = first + threadIdx.x % kWarp; c < first + s.offset_channels(); c += kWarp) {
    A sum = A(0);
    for (int64_t j = begin; j < total && keys[j] == key; ++j) {
      const int64_t sample = entries[j] / 4 / s.offset_groups;  // pixel and tap
      const int64_t at = column_index(s, chunk, sample * s.group_channels(), c);
      sum += weights[entries[j]] * static_cast<A>(grad_columns[at]);
    }
    grad_input[pixel * s.channels + c] += sum;  // nobody else's in this launch; chunks come in order
  }
}

// ---- small things ----

// Adds (C,) to each of `count` / C rows.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(T* __restrict__ rows, const T* __restrict__ bias, int64_t channels, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    rows[i] = static_cast<T>(static_cast<A>(rows[i]) + static_cast<A>(bias[i % channels]));
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) add_kernel(A* __restrict__ sum, const T* __restrict__ part, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    sum[i] += static_cast<A>(part[i]);
  }
}

// ---- launches ----

unsigned grid_for(int64_t total) {
  return static_cast<unsigned>(std::min<int64_t>((total + kThreads - 1) / kThreads, int64_t(1) << 22));
}

// A batch of matrices in memory: element (b, i, j) at data + b * batch + i * row + j * column.
struct Matrices {
  const void* data;
  int64_t batch, row, column;
};

// c (count, m, n) = a (count, m, k) * b (count, k, n) by torch's product, on its current stream.
void multiply(const Tensor& like, const Matrices& c, const Matrices& a, const Matrices& b, int64_t count, int64_t m,
              int64_t n, int64_t k) {
  const auto view = [&](const Matrices& x, int64_t rows, int64_t columns) {
    const int64_t sizes[3] = {count, rows, columns}, strides[3] = {x.batch, x.row, x.column};
    return torch::stable::from_blob(const_cast<void*>(x.data), {sizes, 3}, {strides, 3}, like.device(),
                                    like.scalar_type());
  };
  const Tensor result = view(c, m, n);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(view(a, m, k)),
                                    torch::stable::detail::from(view(b, k, n)), torch::stable::detail::from(result)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  // The call hands back a handle of its own to the result.
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// Whether kVec channels of a pixel can be moved at once, in the input and in the columns.
bool can_vectorise(const Shape& s, const Tensor& input, int64_t vec) {
  return s.offset_channels() % vec == 0 && s.group_channels() % vec == 0 &&
         reinterpret_cast<uintptr_t>(input.const_data_ptr()) % (vec * input.element_size()) == 0;
}

// Pixels of a chunk, so that the columns stay within kColumnBytes.
int64_t chunk_pixels(const char* op, const Shape& s, size_t element_size) {
  const int64_t column = s.taps() * s.channels;
  // So that 32 bits count the vectors of a block and the entries of a chunk.
  check(column < (int64_t(1) << 24), op, "kernel_h * kernel_w * channels must be below 2^24 on CUDA, got ", column);
  const int64_t pixels = std::max<int64_t>(1, kColumnBytes / (column * static_cast<int64_t>(element_size)));
  return std::min(pixels, s.images * s.out_pixels());
}

// Calls `body(Chunk)` for all output pixels.
template <typename Body>
void for_chunks(const Shape& s, int64_t pixels, const Body& body) {
  const int64_t total = s.images * s.out_pixels();
  for (int64_t first = 0; first < total; first += pixels) body(Chunk{first, std::min(pixels, total - first)});
}

template <typename T, typename A>
void launch_columns(const Tensor& input, const A* offset, const A* mask, T* columns, const Shape& s, const Chunk& chunk,
                    cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const T* from = static_cast<const T*>(input.const_data_ptr());
  const unsigned blocks = blocks_for(chunk.samples(s), kSamples);
  if (can_vectorise(s, input, kWide)) {
    columns_kernel<T, A, kWide><<<blocks, kThreads, 0, stream>>>(from, offset, mask, columns, s, chunk);
  } else {
    columns_kernel<T, A, 1><<<blocks, kThreads, 0, stream>>>(from, offset, mask, columns, s, chunk);
  }
}

Tensor channels_last(const Tensor& tensor) { return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast); }

Tensor forward_cuda(const Tensor& input, const Tensor& weight, const Tensor& offset, std::optional<Tensor> mask,
                    std::optional<Tensor> bias, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                    int64_t dilation_h, int64_t dilation_w) {
  constexpr const char* kOp = "deform_conv2d";
  const Shape s =
      check_forward(kOp, input, weight, offset, mask, bias, {stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w});
  const CudaDevice device(input);
  const bool last = is_channels_last(input);
  Tensor rows = empty_4d(input, s.images, s.out_channels, s.out_h, s.out_w, true);
  Tensor out = last ? rows : empty_4d(input, s.images, s.out_channels, s.out_h, s.out_w, false);
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(input);
  const Tensor packed = channels_last(input);    // (N, H, W, C) in memory
  const Tensor weights = channels_last(weight);  // (C_out, kernel_h, kernel_w, C / groups)
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const ScalarType type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    const Tensor offsets = contiguous_as(offset, type);
    if (mask) mask = contiguous_as(*mask, type);
    const A* offset_data = static_cast<const A*>(offsets.const_data_ptr());
    const A* mask_data = mask ? static_cast<const A*>(mask->const_data_ptr()) : nullptr;
    T* to = static_cast<T*>(rows.mutable_data_ptr());
    const int64_t pixels = chunk_pixels(kOp, s, sizeof(T)), depth = s.taps() * s.group_channels();
    const Scratch<T> columns(input, pixels * s.groups * depth);
    for_chunks(s, pixels, [&](const Chunk& chunk) {
      launch_columns<T, A>(packed, offset_data, mask_data, columns.get(), s, chunk, stream);
      multiply(input, {to + chunk.first * s.out_channels, s.group_outputs(), s.out_channels, 1},
               {columns.get(), chunk.count * depth, depth, 1},
               {weights.const_data_ptr(), s.group_outputs() * depth, 1, depth}, s.groups, chunk.count,
               s.group_outputs(), depth);
    });
    if (bias) {
      const Tensor biases = torch::stable::contiguous(*bias);
      add_bias_kernel<T, A><<<grid_for(rows.numel()), kThreads, 0, stream>>>(
          to, static_cast<const T*>(biases.const_data_ptr()), s.out_channels, rows.numel());
    }
    check_cuda(kOp, cudaGetLastError());
  });
  return last ? rows : torch::stable::copy_(out, rows);
}

// What the backward pass has for each of the four gradients; null where not needed.
template <typename A>
struct Gradients {
  A* input;   // (N, H, W, C)
  A* weight;  // (C_out, kernel_h, kernel_w, C / groups)
  A* offset;
  A* mask;
};

template <typename T, typename A>
void backward(const char* op, const Shape& s, const Tensor& grad, const Tensor& input, const Tensor& weight,
              const A* offset, const A* mask, const Gradients<A>& to, bool deterministic, cudaStream_t stream) {
  constexpr int kWide = std::is_same_v<A, double> ? 1 : 4;
  const int64_t pixels = chunk_pixels(op, s, sizeof(T)), depth = s.taps() * s.group_channels();
  const bool need_columns = to.input || to.offset || to.mask;
  const Scratch<T> columns(input, pixels * s.groups * depth);  // their gradients first, then themselves
  const Scratch<T> part(input, to.weight ? weight.numel() : 0);
  const bool ordered = deterministic && to.input;
  const int64_t entries = ordered ? 4 * pixels * s.taps() * s.offset_groups : 0;
  const Scratch<uint64_t> keys(input, entries), sorted_keys(input, entries);
  const Scratch<uint32_t> numbers(input, entries), sorted_numbers(input, entries);
  const Scratch<A> weights(input, entries);
  const T* from = static_cast<const T*>(input.const_data_ptr());
  const T* grads = static_cast<const T*>(grad.const_data_ptr());
  for_chunks(s, pixels, [&](const Chunk& chunk) {
    const T* rows = grads + chunk.first * s.out_channels;
    if (need_columns) {
      multiply(input, {columns.get(), chunk.count * depth, depth, 1}, {rows, s.group_outputs(), s.out_channels, 1},
               {weight.const_data_ptr(), s.group_outputs() * depth, depth, 1}, s.groups, chunk.count, depth,
               s.group_outputs());
      A* added = ordered ? nullptr : to.input;
      if (added || to.offset || to.mask) {
        const unsigned blocks = blocks_for(chunk.samples(s), kSamples);
        const auto launch = [&](auto kernel) {
          kernel<<<blocks, kThreads, 0, stream>>>(columns.get(), from, offset, mask, added, to.offset, to.mask, s,
                                                  chunk);
        };
        if (kWide > 1 && can_vectorise(s, input, kWide)) {
          launch(places_kernel<T, A, kWide>);
        } else {
          launch(places_kernel<T, A, 1>);
        }
      }
      if (ordered) {
        const int64_t count = 4 * chunk.samples(s);
        entries_kernel<A><<<blocks_for(chunk.samples(s), kThreads), kThreads, 0, stream>>>(
            offset, mask, keys.get(), numbers.get(), weights.get(), s, chunk);
        sort_pairs(input, keys.get(), sorted_keys.get(), numbers.get(), sorted_numbers.get(), count, stream);
        ordered_kernel<T, A><<<blocks_for(count, kThreads / kWarp), kThreads, 0, stream>>>(
            columns.get(), sorted_keys.get(), sorted_numbers.get(), weights.get(), to.input, s, chunk);
      }
    }
    if (to.weight) {
      launch_columns<T, A>(input, offset, mask, columns.get(), s, chunk, stream);
      multiply(input, {part.get(), s.group_outputs() * depth, depth, 1}, {rows, s.group_outputs(), 1, s.out_channels},
               {columns.get(), chunk.count * depth, depth, 1}, s.groups, s.group_outputs(), depth, chunk.count);
      add_kernel<T, A><<<grid_for(weight.numel()), kThreads, 0, stream>>>(to.weight, part.get(), weight.numel());
    }
  });
  check_cuda(op, cudaGetLastError());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                         const Tensor& offset, std::optional<Tensor> mask,
                                                         int64_t stride_h, int64_t stride_w, int64_t pad_h,
                                                         int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                                                         bool need_input, bool need_weight, bool need_offset,
                                                         bool need_mask, bool deterministic) {
  constexpr const char* kOp = "_deform_conv2d_backward";
  const Shape s = check_backward(kOp, grad, input, weight, offset, mask,
                                 {stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w});
  const CudaDevice device(input);
  need_mask = need_mask && mask;
  const ScalarType mask_type = mask ? mask->scalar_type() : offset.scalar_type();
  const ScalarType type = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  // Sums in float32 (float64), rounded into the results below.
  const auto sums = [&](bool needed, const Tensor& like, bool last) {
    if (!needed) return nothing(like);
    Tensor zeros = torch::stable::empty(like.sizes(), type, std::nullopt, like.device(), std::nullopt, format_of(last));
    return torch::stable::zero_(zeros);
  };
  Tensor input_sums = sums(need_input, input, true), weight_sums = sums(need_weight, weight, true);
  Tensor offset_sums = sums(need_offset, offset, false);
  Tensor mask_sums = need_mask ? sums(true, *mask, false) : nothing(mask ? *mask : offset);
  if (grad.numel() != 0 && (need_input || need_weight || need_offset || need_mask)) {
    const cudaStream_t stream = current_stream(input);
    const Tensor packed = channels_last(input), weights = channels_last(weight), grads = channels_last(grad);
    const Tensor offsets = contiguous_as(offset, type);
    if (mask) mask = contiguous_as(*mask, type);
    dispatch_floating(input.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      using A = accumulate_t<T>;
      const auto data = [](bool needed, Tensor& t) {
        return needed ? static_cast<A*>(t.mutable_data_ptr()) : static_cast<A*>(nullptr);
      };
      const Gradients<A> to{data(need_input, input_sums), data(need_weight, weight_sums),
                            data(need_offset, offset_sums), data(need_mask, mask_sums)};
      backward<T, A>(kOp, s, grads, packed, weights, static_cast<const A*>(offsets.const_data_ptr()),
                     mask ? static_cast<const A*>(mask->const_data_ptr()) : nullptr, to, deterministic, stream);
    });
  }
  // The result in the argument's dtype and in the layout asked for.
  const auto rounded = [](bool needed, const Tensor& sum, ScalarType dtype, bool last) {
    if (!needed || (sum.scalar_type() == dtype && (sum.dim() != 4 || last))) return sum;
    Tensor out = torch::stable::empty(sum.sizes(), dtype, std::nullopt, sum.device(), std::nullopt, format_of(last));
    return torch::stable::copy_(out, sum);
  };
  const auto in = [](const Tensor& t, ScalarType dtype) {
    return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  };
  return {rounded(need_input, input_sums, input.scalar_type(), is_channels_last(input)),
          rounded(need_weight, weight_sums, weight.scalar_type(), false), in(offset_sums, offset.scalar_type()),
          in(mask_sums, mask_type)};
}

}  // namespace
}  // namespace deform_conv2d
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&d2proj::deform_conv2d::forward_cuda));
  m.impl("_deform_conv2d_backward", TORCH_BOX(&d2proj::deform_conv2d::backward_cuda));
}
