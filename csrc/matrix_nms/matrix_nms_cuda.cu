// Matrix NMS on CUDA: two passes over the boxes that rank before each. No n x n matrix.
#include "matrix_nms/matrix_nms.h"
#include "nms/nms_dets.cuh"

namespace d2proj {
namespace {

// most[p]: the highest IoU of the box at p with a better one.
template <typename T>
struct Most {
  using State = T;

  T* most;

  __device__ bool wants(int64_t) const { return true; }
  __device__ T start(int64_t) const { return T(0); }
  __device__ void add(T& state, T iou, int64_t) const { state = iou > state ? iou : state; }
  __device__ void finish(int64_t p, T state) const { most[p] = state; }
};

template <typename T, bool kGauss>
struct Decay {
  using State = T;

  const T* most;
  const uint32_t* index;
  const T* scores;
  T* rescored;
  uint8_t* kept;
  T sigma, min_score;

  __device__ bool wants(int64_t) const { return true; }
  __device__ T start(int64_t) const { return T(kGauss ? 0 : 1); }
  __device__ void add(T& state, T iou, int64_t i) const {
    if constexpr (kGauss) {
      matrix_nms::gaussian_step(state, iou, most[i]);
    } else {
      matrix_nms::linear_step(state, iou, most[i]);
    }
  }
  __device__ void finish(int64_t p, T state) const {
    const uint32_t i = index[p];
    const T score = matrix_nms::decayed(scores[i], state, kGauss, sigma);
    rescored[i] = score;
    kept[i] = nms::stays(score, min_score);
  }
};

std::tuple<Tensor, Tensor> matrix_nms_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                           bool gaussian, double sigma, double min_score) {
  nms::check_arguments("matrix_nms", boxes, scores, idxs);
  matrix_nms::check_sigma("matrix_nms", sigma);
  const CudaDevice device(boxes);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    using T = decltype(tag);
    const cudaStream_t stream = current_stream(boxes);
    const int64_t count = b.size(0);
    const nms::Ranking ranking(scores, idxs, stream);
    const nms::Placed<T> placed(b, ranking.order(), ranking.ranks(), ranking.ids(), stream);
    const Scratch<T> most(b, count);
    const Scratch<uint8_t> kept(b, count);
    const Tensor rescored = torch::stable::new_empty(s, {&count, 1});
    nms::run_pass<false>(placed.get(), Most<T>{most.get()}, stream);
    const auto decay = [&](auto kind) {
      const Decay<T, decltype(kind)::value> step{most.get(),
                                                 placed.index(),
                                                 static_cast<const T*>(s.const_data_ptr()),
                                                 static_cast<T*>(rescored.mutable_data_ptr()),
                                                 kept.get(),
                                                 static_cast<T>(sigma),
                                                 static_cast<T>(min_score)};
      nms::run_pass<false>(placed.get(), step, stream);
    };
    gaussian ? decay(std::true_type{}) : decay(std::false_type{});
    return nms::write_dets(b, static_cast<const Box<T>*>(b.const_data_ptr()), rescored, kept.get(), stream);
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) { m.impl("matrix_nms", TORCH_BOX(&d2proj::matrix_nms_cuda)); }
