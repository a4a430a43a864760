// Weighted boxes fusion and non-maximum weighted on CUDA.
//
// Which cluster a box joins depends on all boxes before it, so a label is worked off box by box, by one block; its
// threads share the comparisons with the clusters. Labels run side by side. Boxes are kept last first, so that a stable
// sort puts the last of equal scores first, as the CPU does.
#include <cuda_runtime.h>

#include <algorithm>

#include "box_fusion/box_fusion_args.h"
#include "nms/nms_select.cuh"

namespace d2proj {
namespace {

using fusion::Candidate;
using fusion::Cluster;
using fusion::ModelWord;
using fusion::Settings;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kMostBlocks = 2048;
constexpr uint64_t kLargestIndex = 0x7fffffff;

// What the fused boxes are sorted by and gathered from; a slot for each box given, most of them unused in the end.
struct Slots {
  Cluster* clusters;
  Box<double>* boxes;  // of the clusters, once more, side by side: what every box is compared with
  ModelWord* models;
  uint64_t* place;  // sorts later labels, and later clusters of a label, first; unused slots last
  uint64_t* score;
  uint32_t* index;
};

// Also turns the order round: box i is candidate count - 1 - i. Boxes that are not admitted get model -1.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    candidate_kernel(const Box<T>* boxes, const T* scores, const int64_t* labels, const int64_t* models,
                     const double* weights, Settings settings, Candidate* candidates, double* weighted,
                     int64_t* labels_reversed, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t r = count - 1 - i;
  const Box<T> box = boxes[i];
  const int64_t model = models[i];
  const bool known = model >= 0 && model < settings.models;
  Candidate candidate{{box.x1, box.y1, box.x2, box.y2}, 0.0, known ? weights[model] : 0.0, model};
  const bool admitted = known && fusion::admit(candidate, static_cast<double>(scores[i]), settings.skip_threshold);
  if (!admitted) candidate.model = -1;
  candidates[r] = candidate;
  weighted[r] = admitted ? candidate.score : static_cast<double>(NAN);  // NaN sorts last
  labels_reversed[r] = labels[i];
}

__global__ void __launch_bounds__(kThreads)
    label_start_kernel(const uint64_t* ids, uint32_t* positions, uint8_t* starts, Slots slots, int64_t count) {
  const int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= count) return;
  positions[p] = static_cast<uint32_t>(p);
  starts[p] = p == 0 || ids[p] != ids[p - 1];
  slots.place[p] = ~uint64_t(0);
  slots.score[p] = ~uint64_t(0);
  slots.index[p] = static_cast<uint32_t>(p);
}

// A cluster and how much it overlaps; the lower index wins a tie.
struct Match {
  double iou;
  int index;  // -1: none

  __device__ void take(double other_iou, int other_index) {
    if (other_index >= 0 && (index < 0 || other_iou > iou || (other_iou == iou && other_index < index))) {
      iou = other_iou;
      index = other_index;
    }
  }
};

// Blocks of kThreads, any number of them: label after label. The clusters of a label fill the slots from where its
// boxes begin.
__global__ void __launch_bounds__(kThreads)
    fuse_kernel(const Candidate* candidates, const uint32_t* order, const uint32_t* ranks, const uint32_t* label_starts,
                const int64_t* label_count, const double* weights, Settings settings, Slots slots,
                unsigned long long* fused, int64_t count) {
  __shared__ double warp_iou[kThreads / kWarp];
  __shared__ int warp_index[kThreads / kWarp];
  __shared__ int shared_clusters;
  const int thread = threadIdx.x;
  const int64_t words = fusion::model_words(settings.models), labels = *label_count;
  double total = 0.0, largest = weights[0];
  for (int64_t m = 0; m < settings.models; ++m) {
    total += weights[m];
    largest = weights[m] > largest ? weights[m] : largest;
  }
  for (int64_t label = blockIdx.x; label < labels; label += gridDim.x) {
    const int64_t begin = label_starts[label], end = label + 1 < labels ? label_starts[label + 1] : count;
    Cluster* const clusters = slots.clusters + begin;
    Box<double>* const boxes = slots.boxes + begin;
    ModelWord* const models = slots.models + begin * words;
    uint64_t first_box = kLargestIndex;
    int open = 0;  // clusters so far
    for (int64_t p = begin; p < end; ++p) {
      const int64_t r = order[ranks[p]];
      const Candidate candidate = candidates[r];
      if (candidate.model < 0) continue;  // for all threads alike
      first_box = min(first_box, static_cast<uint64_t>(count - 1 - r));
      Match match{settings.iou_threshold, -1};
      for (int k = thread; k < open; k += kThreads) {
        const double iou = fusion::overlap(boxes[k], candidate.box);
        if (iou > match.iou) match = {iou, k};
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const double other_iou = __shfl_down_sync(0xffffffffu, match.iou, step);
        const int other_index = __shfl_down_sync(0xffffffffu, match.index, step);
        match.take(other_iou, other_index);
      }
      if (thread % kWarp == 0) {
        warp_iou[thread / kWarp] = match.iou;
        warp_index[thread / kWarp] = match.index;
      }
      __syncthreads();
      if (thread == 0) {
        for (int w = 1; w < kThreads / kWarp; ++w) match.take(warp_iou[w], warp_index[w]);
        const int k = match.index >= 0 ? match.index : open;
        Cluster cluster;
        if (match.index >= 0) {
          cluster = clusters[k];
          fusion::join(cluster, candidate, settings.weighted_by_overlap);
        } else {
          cluster = fusion::begin_cluster(candidate, settings.weighted_by_overlap);
        }
        clusters[k] = cluster;
        boxes[k] = cluster.box;
        fusion::add_model(models + k * words, candidate.model);
        shared_clusters = k == open ? open + 1 : open;
      }
      __syncthreads();  // also makes the cluster visible to the block
      open = shared_clusters;
    }
    for (int k = thread; k < open; k += kThreads) {
      fusion::finish(clusters[k], models + k * words, weights, total, largest, settings);
      slots.place[begin + k] = (kLargestIndex - first_box) << 32 | (kLargestIndex - static_cast<uint64_t>(k));
      slots.score[begin + k] = nms::descending_key(clusters[k].score);
    }
    if (thread == 0) atomicAdd(fused, static_cast<unsigned long long>(open));
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_key_kernel(const uint64_t* keys, const uint32_t* index, uint64_t* out, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) out[i] = keys[index[i]];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const Cluster* clusters, const uint64_t* ids, const uint32_t* index, const int64_t* fused,
                 Box<T>* boxes, T* scores, int64_t* labels) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= *fused) return;
  const uint32_t slot = index[i];
  const Box<double> box = clusters[slot].box;
  boxes[i] = {static_cast<T>(box.x1), static_cast<T>(box.y1), static_cast<T>(box.x2), static_cast<T>(box.y2)};
  scores[i] = static_cast<T>(clusters[slot].score);
  labels[i] = static_cast<int64_t>(ids[slot] ^ (uint64_t(1) << 63));  // undoes nms::ascending_key
}

template <typename T>
fusion::Fused run(const fusion::Inputs& inputs, const Settings& settings) {
  const Tensor& like = inputs.boxes;
  const int64_t count = inputs.count;
  if (count == 0 || settings.models == 0) return fusion::empty_result(inputs, 0);
  auto [boxes, scores, labels] = fusion::empty_result(inputs, count);
  const cudaStream_t stream = current_stream(like);
  const unsigned blocks = blocks_for(count, kThreads);
  const double* const weights = static_cast<const double*>(inputs.weights.const_data_ptr());

  const Scratch<Candidate> candidates(like, count);
  Tensor weighted = torch::stable::new_empty(like, {&count, 1}, ScalarType::Double);
  Tensor labels_reversed = torch::stable::new_empty(like, {&count, 1}, ScalarType::Long);
  candidate_kernel<T><<<blocks, kThreads, 0, stream>>>(
      static_cast<const Box<T>*>(inputs.boxes.const_data_ptr()), static_cast<const T*>(inputs.scores.const_data_ptr()),
      static_cast<const int64_t*>(inputs.labels.const_data_ptr()),
      static_cast<const int64_t*>(inputs.models.const_data_ptr()), weights, settings, candidates.get(),
      static_cast<double*>(weighted.mutable_data_ptr()), static_cast<int64_t*>(labels_reversed.mutable_data_ptr()),
      count);
  const nms::Ranking ranking(weighted, labels_reversed, stream);

  const int64_t words = fusion::model_words(settings.models);
  const Scratch<Cluster> clusters(like, count);
  const Scratch<Box<double>> cluster_boxes(like, count);
  const Scratch<ModelWord> models(like, count * words);
  const Scratch<uint64_t> place(like, count), place_out(like, count), score(like, count), score_out(like, count);
  const Scratch<uint32_t> index(like, count), by_place(like, count), positions(like, count), starts(like, count);
  const Scratch<uint8_t> is_start(like, count);
  const Scratch<int64_t> label_count(like, 1);
  Tensor fused = torch::stable::new_empty(like, {}, ScalarType::Long);
  torch::stable::zero_(fused);
  int64_t* const fused_count = static_cast<int64_t*>(fused.mutable_data_ptr());
  check_cuda("box_fusion", cudaMemsetAsync(models.get(), 0, count * words * sizeof(ModelWord), stream));
  const Slots slots{clusters.get(), cluster_boxes.get(), models.get(), place.get(), score.get(), index.get()};
  label_start_kernel<<<blocks, kThreads, 0, stream>>>(ranking.ids(), positions.get(), is_start.get(), slots, count);
  run_cub(like, [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::Flagged(memory, bytes, positions.get(), is_start.get(), starts.get(), label_count.get(),
                                      count, stream);
  });
  fuse_kernel<<<static_cast<unsigned>(std::min<int64_t>(count, kMostBlocks)), kThreads, 0, stream>>>(
      candidates.get(), ranking.order(), ranking.ranks(), starts.get(), label_count.get(), weights, settings, slots,
      reinterpret_cast<unsigned long long*>(fused_count), count);

  sort_pairs(like, place.get(), place_out.get(), index.get(), by_place.get(), count, stream);
  // `place_out` has served: the scores in that order take its place.
  gather_key_kernel<<<blocks, kThreads, 0, stream>>>(score.get(), by_place.get(), place_out.get(), count);
  sort_pairs(like, place_out.get(), score_out.get(), by_place.get(), index.get(), count, stream);
  write_kernel<T><<<blocks, kThreads, 0, stream>>>(
      clusters.get(), ranking.ids(), index.get(), fused_count, static_cast<Box<T>*>(boxes.mutable_data_ptr()),
      static_cast<T*>(scores.mutable_data_ptr()), static_cast<int64_t*>(labels.mutable_data_ptr()));
  check_cuda("box_fusion", cudaGetLastError());
  const int64_t kept = nms::read_count(fused);  // the one wait: a tensor's size is known to the host
  return {torch::stable::narrow(boxes, 0, 0, kept), torch::stable::narrow(scores, 0, 0, kept),
          torch::stable::narrow(labels, 0, 0, kept)};
}

fusion::Fused run_any(const fusion::Inputs& inputs, const Settings& settings) {
  return inputs.type == ScalarType::Double ? run<double>(inputs, settings) : run<float>(inputs, settings);
}

fusion::Fused weighted_boxes_fusion_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                                         const Tensor& models, const Tensor& weights, double iou_thr,
                                         double skip_box_thr, int64_t conf_type, bool allows_overflow) {
  const fusion::Inputs inputs = fusion::prepare_inputs("weighted_boxes_fusion", boxes, scores, labels, models, weights);
  const CudaDevice device(boxes);
  return run_any(inputs, fusion::fusion_settings(iou_thr, skip_box_thr, conf_type, allows_overflow, weights));
}

fusion::Fused non_maximum_weighted_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                                        const Tensor& models, const Tensor& weights, double iou_thr,
                                        double skip_box_thr) {
  const fusion::Inputs inputs = fusion::prepare_inputs("non_maximum_weighted", boxes, scores, labels, models, weights);
  const CudaDevice device(boxes);
  return run_any(inputs, fusion::weighted_settings(iou_thr, skip_box_thr, weights));
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("weighted_boxes_fusion", TORCH_BOX(&d2proj::weighted_boxes_fusion_cuda));
  m.impl("non_maximum_weighted", TORCH_BOX(&d2proj::non_maximum_weighted_cuda));
}
