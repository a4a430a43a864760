// Cluster-NMS on the CPU: the greedy engine, then a pass over the kept boxes' overlaps.
#include "cluster_nms/cluster_nms.h"

#include "nms/nms_dets.h"
#include "nms/nms_store.h"

namespace d2proj {
namespace {

using cluster_nms::Mean;
using cluster_nms::Options;

// Calls visit(slot, iou) for each box that overlaps by more than `above`.
template <simd::Level L, typename T, typename Visit>
struct EachLane {
  using V = typename nms::Native<L, T>::Vector;
  using Mask = typename nms::Native<L, T>::Mask;

  const Visit& visit;
  T above;

  D2_INLINE void operator()(int64_t slot, const V& inter, const V& both, const Mask& hit) {
    const V iou = inter / both;
    for (uint32_t left = nms::lanes<L, T>(hit & (iou > V{} + above)); left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      visit(slot + lane, iou[lane]);
    }
  }
};

struct Nothing {
  D2_INLINE void operator()(int64_t) {}
};

struct ForEach {
  template <simd::Level L, typename T, typename Visit>
  static D2_INLINE void run(const nms::Store<T>& store, const Box<T>& box, T area, T above, const Visit& visit) {
    EachLane<L, T, Visit> each{visit, above};
    Nothing nothing;
    store.template for_overlaps<L>(box, area, each, nothing);
  }
};

// One thread's pass over segments, after the greedy one; its buffers are reused from one to the next.
template <typename T>
class Refine {
 public:
  Refine(const Options& options, T above) : options_(options), above_(above), store_(above) {}

  // `ranks`: the segment's. New scores and boxes go to `dets` and `means`, by index.
  void run(nms::Dets<T>& dets, const nms::Kept& kept, const uint32_t* ranks, int64_t count, Box<T>* means) {
    const bool weighted = options_.variant == cluster_nms::kWeighted;
    boxes_.clear();
    areas_.clear();
    ranks_.clear();
    for (int64_t i = 0; i < count; ++i) {
      // The last first, for a mean is taken over worse boxes.
      const uint32_t rank = ranks[weighted ? count - 1 - i : i];
      const Box<T> box = dets.boxes[kept.order[rank]];
      const T area = box_area(box);
      if (nms::inert(box, area)) continue;
      boxes_.push_back(box);
      areas_.push_back(area);
      ranks_.push_back(rank);
    }
    const int64_t active = boxes_.size();
    store_.reset(boxes_.data(), areas_.data(), active);
    for (int64_t i = 0; i < active; ++i) {
      const uint32_t id = kept.order[ranks_[i]];
      const bool stays = kept.flags[ranks_[i]];
      if (weighted) {
        if (stays) means[id] = mean(boxes_[i], areas_[i], dets.scores[id]);
      } else {
        dets.rescored[id] = penalised(boxes_[i], areas_[i], dets.scores[id]);
      }
      if (weighted || stays) store_.add(i, boxes_[i], areas_[i], dets.scores[id], id);
    }
  }

 private:
  T penalised(const Box<T>& box, T area, T score) const {
    double squares = 0;
    simd::dispatch<ForEach>(store_, box, area, above_, [&](int64_t, T iou) { squares += cluster_nms::square(iou); });
    return cluster_nms::penalised(score, squares, options_.sigma);
  }

  Box<T> mean(const Box<T>& box, T area, T score) {
    Mean<T> mean = Mean<T>::of(box, score);
    const T* const scores = store_.values();
    simd::dispatch<ForEach>(store_, box, area, above_, [&](int64_t slot, T iou) {
      mean.add(store_.box(slot), product<double>(iou, scores[slot]));
    });
    return mean.box(box);
  }

  Options options_;
  T above_;
  nms::Store<T> store_;
  std::vector<Box<T>> boxes_;
  std::vector<T> areas_;
  std::vector<uint32_t> ranks_;
};

std::tuple<Tensor, Tensor> cluster_nms_cpu(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                           double iou_threshold, int64_t variant, double beta, double sigma,
                                           double min_score) {
  const char* const op = idxs.has_value() ? "batched_cluster_nms" : "cluster_nms";
  const Options options{iou_threshold, variant, beta, sigma, min_score};
  nms::check_arguments(op, boxes, scores, idxs);
  cluster_nms::check_options(op, options);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    using T = decltype(tag);
    nms::Dets<T> dets(b, s);
    nms::Kept kept = variant == cluster_nms::kDistance
                         ? nms::select(boxes, scores, idxs, diou_nms::diou_above(iou_threshold, beta))
                         : nms::select(boxes, scores, idxs, nms::iou_above(iou_threshold));
    const int64_t count = kept.order.size();
    for (int64_t rank = 0; rank < count; ++rank) dets.kept[kept.order[rank]] = kept.flags[rank];
    if (variant == cluster_nms::kPlain || variant == cluster_nms::kDistance) return dets.write(b, dets.boxes);
    const bool weighted = variant == cluster_nms::kWeighted;
    // IoUs at or below zero weigh nothing, whatever the threshold.
    const T above = weighted ? std::max(T(0), nms::round_down<T>(iou_threshold)) : T(0);
    std::vector<Box<T>> means(dets.boxes, dets.boxes + (weighted ? count : 0));
    const nms::Classes classes = nms::classes_of(idxs, kept.order);
    nms::share_segments(
        classes.segments, count, [&] { return Refine<T>(options, above); },
        [&](Refine<T>& state, const nms::Segment& segment) {
          state.run(dets, kept, classes.ranks.data() + segment.begin, segment.end - segment.begin, means.data());
        },
        nms::Parallel{});
    if (weighted) return dets.write(b, means.data());
    dets.keep_from(static_cast<T>(min_score));
    return dets.write(b, dets.boxes);
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("cluster_nms", TORCH_BOX(&d2proj::cluster_nms_cpu)); }
