// Matrix NMS on the CPU: one pass over the boxes by descending score. What a box needs to know of a better one, how
// much that one is overlapped itself, was found when that one was met. No n x n matrix: boxes met lie in a grid's
// cells.
#include "matrix_nms/matrix_nms.h"

#include "nms/nms_dets.h"
#include "nms/nms_store.h"

namespace d2proj {
namespace {

// One box against a vector of better ones, whose values are the highest IoU that each has with a better one.
template <simd::Level L, typename T, bool kGauss>
struct Compare {
  using V = typename nms::Native<L, T>::Vector;
  using Mask = typename nms::Native<L, T>::Mask;

  const T* values;
  V most, worst;

  D2_INLINE void operator()(int64_t slot, const V& inter, const V& both, const Mask& hit) {
    const V one = V{} + T(1), iou = inter / both;
    const V overlap = hit ? (iou < one ? iou : one) : V{};
    V value;
    simd::load(value, values + slot);
    most = overlap > most ? overlap : most;
    if constexpr (kGauss) {
      matrix_nms::gaussian_step(worst, overlap, value);
    } else {
      matrix_nms::linear_step(worst, overlap, value);
    }
  }
};

struct Nothing {
  D2_INLINE void operator()(int64_t) {}
};

template <typename T>
struct Found {
  T most, worst;
};

template <typename T, bool kGauss>
struct Query {
  template <simd::Level L>
  static D2_INLINE void run(nms::Store<T>* store, const Box<T>& box, T area, Found<T>* found) {
    using V = typename nms::Native<L, T>::Vector;
    Compare<L, T, kGauss> compare{store->values(), V{}, V{} + T(kGauss ? 0 : 1)};
    Nothing nothing;
    store->template for_overlaps<L>(box, area, compare, nothing);
    *found = {compare.most[0], compare.worst[0]};
    for (int i = 1; i < nms::Native<L, T>::kLanes; ++i) {
      found->most = std::max(found->most, compare.most[i]);
      found->worst = kGauss ? std::max(found->worst, compare.worst[i]) : std::min(found->worst, compare.worst[i]);
    }
  }
};

// One thread's pass over segments; its buffers are reused from one to the next.
template <typename T, bool kGauss>
class MatrixNms {
 public:
  explicit MatrixNms(T sigma) : sigma_(sigma), store_(T(0)) {}

  // `ids`: the segment's boxes by rank.
  void run(nms::Dets<T>& dets, const std::vector<uint32_t>& order, const uint32_t* ranks, int64_t count) {
    boxes_.clear();
    areas_.clear();
    ids_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = dets.boxes[order[ranks[i]]];
      const T area = box_area(box);
      if (nms::inert(box, area)) continue;
      boxes_.push_back(box);
      areas_.push_back(area);
      ids_.push_back(order[ranks[i]]);
    }
    const int64_t active = boxes_.size();
    store_.reset(boxes_.data(), areas_.data(), active);
    for (int64_t i = 0; i < active; ++i) {
      Found<T> found;
      simd::dispatch<Query<T, kGauss>>(&store_, boxes_[i], areas_[i], &found);
      dets.rescored[ids_[i]] = matrix_nms::decayed(dets.scores[ids_[i]], found.worst, kGauss, sigma_);
      store_.add(i, boxes_[i], areas_[i], found.most, ids_[i]);
    }
  }

 private:
  T sigma_;
  nms::Store<T> store_;
  std::vector<Box<T>> boxes_;
  std::vector<T> areas_;
  std::vector<uint32_t> ids_;
};

template <typename T, bool kGauss>
void run_matrix(nms::Dets<T>& dets, const Tensor& scores, const std::optional<Tensor>& idxs, double sigma) {
  const std::vector<uint32_t> order = nms::rank_by_score(scores);
  const nms::Classes classes = nms::classes_of(idxs, order);
  nms::share_segments(
      classes.segments, order.size(), [&] { return MatrixNms<T, kGauss>(static_cast<T>(sigma)); },
      [&](MatrixNms<T, kGauss>& state, const nms::Segment& segment) {
        state.run(dets, order, classes.ranks.data() + segment.begin, segment.end - segment.begin);
      },
      nms::Parallel{});
}

std::tuple<Tensor, Tensor> matrix_nms_cpu(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                          bool gaussian, double sigma, double min_score) {
  nms::check_arguments("matrix_nms", boxes, scores, idxs);
  matrix_nms::check_sigma("matrix_nms", sigma);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    using T = decltype(tag);
    nms::Dets<T> dets(b, s);
    gaussian ? run_matrix<T, true>(dets, scores, idxs, sigma) : run_matrix<T, false>(dets, scores, idxs, sigma);
    dets.keep_from(static_cast<T>(min_score));
    return dets.write(b, dets.boxes);
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("matrix_nms", TORCH_BOX(&d2proj::matrix_nms_cpu)); }
