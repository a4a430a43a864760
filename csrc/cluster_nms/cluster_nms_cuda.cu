// Cluster-NMS on CUDA: the greedy engine, then a pass over the kept boxes' overlaps.
#include "cluster_nms/cluster_nms.h"
#include "nms/nms_dets.cuh"

namespace d2proj {
namespace {

using cluster_nms::Mean;
using cluster_nms::Options;

// New scores from the kept boxes that rank before each.
template <typename T>
struct Penalty {
  using State = double;

  const uint32_t* index;
  const uint8_t* greedy;  // by index
  const T* scores;
  T* rescored;
  uint8_t* kept;
  double sigma;
  T min_score;

  __device__ bool wants(int64_t) const { return true; }
  __device__ double start(int64_t) const { return 0; }
  __device__ void add(double& squares, T iou, int64_t i) const {
    if (iou > T(0) && greedy[index[i]]) squares += cluster_nms::square(iou);
  }
  __device__ void finish(int64_t p, double squares) const {
    const uint32_t i = index[p];
    const T score = cluster_nms::penalised(scores[i], squares, sigma);
    rescored[i] = score;
    kept[i] = nms::stays(score, min_score);
  }
};

// Kept boxes moved to the mean of themselves and worse ones that they overlap.
template <typename T>
struct Average {
  using State = Mean<T>;

  const uint32_t* index;
  const uint8_t* greedy;  // by index
  const Box<T>* boxes;
  const T* scores;
  Box<T>* means;
  T above;

  __device__ bool wants(int64_t p) const { return greedy[index[p]]; }
  __device__ Mean<T> start(int64_t p) const { return Mean<T>::of(boxes[index[p]], scores[index[p]]); }
  __device__ void add(Mean<T>& mean, T iou, int64_t i) const {
    if (iou > above) mean.add(boxes[index[i]], product<double>(iou, scores[index[i]]));
  }
  __device__ void finish(int64_t p, const Mean<T>& mean) const { means[index[p]] = mean.box(boxes[index[p]]); }
};

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& boxes, const Tensor& b, const Tensor& scores, const Tensor& s,
                               const std::optional<Tensor>& idxs, const Options& options, cudaStream_t stream) {
  const int64_t count = b.size(0);
  const nms::Ranking ranking(scores, idxs, stream);
  const Scratch<uint8_t> flags(b, count), greedy(b, count);
  // The greedy pass is in the dtype of the boxes, as in nms, even if scores raise that of the result.
  const Tensor dense = nms::prepare_boxes(boxes);
  const auto suppress = [&](auto tag) {
    using B = decltype(tag);
    if (options.variant == cluster_nms::kDistance) {
      nms::run_chunks(dense, ranking.order(), ranking.ids(), ranking.ranks(),
                      diou_nms::DiouCriterion<B>(options.iou_threshold, options.beta), flags.get(), stream);
    } else {
      nms::run_chunks(dense, ranking.order(), ranking.ids(), ranking.ranks(),
                      nms::IouCriterion<B>(options.iou_threshold), flags.get(), stream);
    }
  };
  dense.scalar_type() == ScalarType::Double ? suppress(double{}) : suppress(float{});
  nms::flags_by_index_kernel<<<blocks_for(count, nms::kRankThreads), nms::kRankThreads, 0, stream>>>(
      flags.get(), ranking.order(), greedy.get(), count);
  const Box<T>* const data = static_cast<const Box<T>*>(b.const_data_ptr());
  const T* const values = static_cast<const T*>(s.const_data_ptr());
  if (options.variant == cluster_nms::kPlain || options.variant == cluster_nms::kDistance) {
    return nms::write_dets(b, data, s, greedy.get(), stream);
  }
  const nms::Placed<T> placed(b, ranking.order(), ranking.ranks(), ranking.ids(), stream);
  if (options.variant == cluster_nms::kWeighted) {
    const Scratch<Box<T>> means(b, count);
    const T above = std::max(T(0), nms::round_down<T>(options.iou_threshold));
    const Average<T> average{placed.index(), greedy.get(), data, values, means.get(), above};
    nms::run_pass<true>(placed.get(), average, stream);
    return nms::write_dets(b, means.get(), s, greedy.get(), stream);
  }
  const Scratch<uint8_t> kept(b, count);
  const Tensor rescored = torch::stable::new_empty(s, {&count, 1});
  const Penalty<T> penalty{placed.index(),
                           greedy.get(),
                           values,
                           static_cast<T*>(rescored.mutable_data_ptr()),
                           kept.get(),
                           options.sigma,
                           static_cast<T>(options.min_score)};
  nms::run_pass<false>(placed.get(), penalty, stream);
  return nms::write_dets(b, data, rescored, kept.get(), stream);
}

std::tuple<Tensor, Tensor> cluster_nms_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                            double iou_threshold, int64_t variant, double beta, double sigma,
                                            double min_score) {
  const char* const op = idxs.has_value() ? "batched_cluster_nms" : "cluster_nms";
  const Options options{iou_threshold, variant, beta, sigma, min_score};
  nms::check_arguments(op, boxes, scores, idxs);
  cluster_nms::check_options(op, options);
  const CudaDevice device(boxes);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    return run<decltype(tag)>(boxes, b, scores, s, idxs, options, current_stream(boxes));
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) { m.impl("cluster_nms", TORCH_BOX(&d2proj::cluster_nms_cuda)); }
