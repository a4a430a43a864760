// Soft-NMS on the CPU.
//
// Scores only ever fall, so each step's best box is the best of the cells' bests. The boxes lie in a grid's cells;
// taking one lowers the scores of those it overlaps, and only cells with such a box, and their rows, look for their
// best anew. Classes are independent and shared among the threads.
#include <limits>

#include "nms/nms_dets.h"
#include "nms/nms_store.h"
#include "soft_nms/soft_nms.h"

namespace d2proj {
namespace {

using soft_nms::Options;

// The best box of a cell or of a row of cells; score 0 if there is none.
template <typename T>
struct Best {
  T score = 0;
  uint32_t id = 0;
  int64_t slot = 0;

  bool better_than(const Best& other) const { return score > other.score || (score == other.score && id < other.id); }
};

template <typename T>
struct Field {
  nms::Store<T> store;
  std::vector<Best<T>> cells, rows;
  std::vector<uint8_t> stale;  // by row

  explicit Field(T threshold) : store(threshold) {}
};

// Multiplies the scores of boxes that the box taken overlaps.
template <simd::Level L, typename T, bool kGauss>
struct Decay {
  using V = typename nms::Native<L, T>::Vector;
  using Mask = typename nms::Native<L, T>::Mask;

  T* scores;
  V above, inverse, min_score;

  D2_INLINE void operator()(int64_t slot, const V& inter, const V& both, const Mask& hit) {
    V weight, score;
    simd::load(score, scores + slot);
    if (nms::lanes<L, T>(hit & (score > V{})) == 0) return;  // all of them gone
    const V iou = inter / both;
    if constexpr (kGauss) {
      soft_nms::gaussian_weight<T>(weight, iou, inverse);
    } else {
      soft_nms::linear_weight(weight, iou, above);
    }
    const V decayed = score * weight;
    simd::store(scores + slot, hit ? (decayed < min_score ? V{} : decayed) : score);
  }
};

template <simd::Level L, typename T>
D2_INLINE void find_best(Field<T>& field, int64_t cell) {
  using V = typename nms::Native<L, T>::Vector;
  constexpr int64_t kLanes = nms::Native<L, T>::kLanes;
  const T* const scores = field.store.values();
  const int64_t begin = field.store.begin(cell), end = field.store.end(cell);
  V best{};
  int64_t living = 0;
  for (int64_t slot = begin; slot < end; slot += kLanes) {
    V score;
    simd::load(score, scores + slot);
    best = score > best ? score : best;
    living += __builtin_popcount(nms::lanes<L, T>(score > V{}));
  }
  Best<T> found;
  found.score = nms::highest<L, T>(best);
  if (living == 0) {
    field.store.clear(cell);
  } else {
    // Half of them gone: the rest move together. Cells hold boxes by ascending index: the first of equals is the best.
    if (2 * living < end - begin && end - begin > nms::Store<T>::kLine) field.store.pack(cell);
    const V wanted = V{} + found.score;
    for (int64_t slot = begin;; slot += kLanes) {
      V score;
      simd::load(score, scores + slot);
      if (const uint32_t equal = nms::lanes<L, T>(score == wanted)) {
        found.slot = slot + __builtin_ctz(equal);
        found.id = field.store.id(found.slot);
        break;
      }
    }
  }
  field.cells[cell] = found;
  field.stale[cell / field.store.cells().columns()] = 1;
}

template <simd::Level L, typename T>
struct Refresh {
  Field<T>& field;
  int64_t home;
  D2_INLINE void operator()(int64_t cell) {
    if (cell != home) find_best<L>(field, cell);
  }
};

// Takes the best box at `slot` away and lowers what it overlaps.
template <typename T, bool kGauss>
struct Take {
  template <simd::Level L>
  static D2_INLINE void run(Field<T>* field, int64_t slot, int64_t home, const Options& options) {
    using V = typename nms::Native<L, T>::Vector;
    const V zero{};
    Decay<L, T, kGauss> decay{field->store.values(), zero + soft_nms::just_below<T>(options.iou_threshold),
                              zero + T(1) / static_cast<T>(options.sigma), zero + static_cast<T>(options.min_score)};
    Refresh<L, T> refresh{*field, home};
    field->store.values()[slot] = T(0);
    const Box<T> box = field->store.box(slot);
    field->store.template for_overlaps<L>(box, field->store.area(slot), decay, refresh);
    find_best<L>(*field, home);
  }
};

template <typename T>
struct FindAll {
  template <simd::Level L>
  static D2_INLINE void run(Field<T>* field, int64_t cells) {
    for (int64_t cell = 0; cell < cells; ++cell) find_best<L>(*field, cell);
  }
};

// One thread's pass over segments; its buffers are reused from one to the next.
template <typename T, bool kGauss>
class SoftNms {
 public:
  explicit SoftNms(const Options& options)
      : options_(options), field_(kGauss ? T(0) : soft_nms::just_below<T>(options.iou_threshold)) {}

  void run(nms::Dets<T>& dets, const uint32_t* indices, int64_t count) {
    gather(dets, indices, count);
    const int64_t columns = field_.store.cells().columns(), cells = field_.store.cells().count();
    field_.cells.assign(cells, {});
    field_.rows.assign(cells / columns, {});
    field_.stale.assign(cells / columns, 0);
    simd::dispatch<FindAll<T>>(&field_, cells);
    for (;;) {
      int64_t cell = 0;
      const Best<T> best = find(cell);
      if (!(best.score > T(0))) break;
      dets.kept[best.id] = 1;
      dets.rescored[best.id] = best.score;
      simd::dispatch<Take<T, kGauss>>(&field_, best.slot, cell, options_);
    }
  }

 private:
  // Boxes that take part go into the field; what becomes of the others, and of those never taken, is clear now.
  void gather(nms::Dets<T>& dets, const uint32_t* indices, int64_t count) {
    const T min_score = static_cast<T>(options_.min_score);
    boxes_.clear();
    areas_.clear();
    ids_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t id = indices[i];
      const T score = dets.scores[id];
      const Box<T> box = dets.boxes[id];
      const T area = box_area(box);
      dets.kept[id] = nms::stays(score, min_score);
      if (!dets.kept[id] || !(score > T(0)) || nms::inert(box, area)) continue;
      boxes_.push_back(box);
      areas_.push_back(area);
      ids_.push_back(id);
      // Unless it is taken, its score has fallen below min_score, or to zero.
      dets.kept[id] = nms::stays(T(0), min_score);
      dets.rescored[id] = T(0);
    }
    const int64_t active = boxes_.size();
    field_.store.reset(boxes_.data(), areas_.data(), active);
    for (int64_t i = 0; i < active; ++i) {
      field_.store.add(i, boxes_[i], areas_[i], dets.scores[ids_[i]], ids_[i]);
    }
  }

  // The best box of all, and its cell.
  Best<T> find(int64_t& cell) {
    const int64_t columns = field_.store.cells().columns(), rows = field_.rows.size();
    Best<T> best;
    for (int64_t r = 0; r < rows; ++r) {
      Best<T>& row = field_.rows[r];
      if (field_.stale[r]) {
        field_.stale[r] = 0;
        row = {};
        for (int64_t c = r * columns; c < (r + 1) * columns; ++c) {
          if (field_.cells[c].better_than(row)) row = field_.cells[c];
        }
      }
      if (row.better_than(best)) best = row;
    }
    if (best.score > T(0)) cell = field_.store.cells().home(field_.store.box(best.slot));
    return best;
  }

  Options options_;
  Field<T> field_;
  std::vector<Box<T>> boxes_;
  std::vector<T> areas_;
  std::vector<uint32_t> ids_;
};

template <typename T, bool kGauss>
void run_soft(nms::Dets<T>& dets, const std::optional<Tensor>& idxs, const Options& options) {
  std::vector<uint32_t> order(dets.kept.size());
  std::iota(order.begin(), order.end(), 0);
  const nms::Classes classes = nms::classes_of(idxs, order);
  nms::share_segments(
      classes.segments, order.size(), [&] { return SoftNms<T, kGauss>(options); },
      [&](SoftNms<T, kGauss>& state, const nms::Segment& segment) {
        state.run(dets, classes.ranks.data() + segment.begin, segment.end - segment.begin);
      },
      nms::Parallel{});
}

template <typename T>
void run_hard(nms::Dets<T>& dets, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
              const Options& options) {
  const nms::Kept kept = nms::select(boxes, scores, idxs, soft_nms::iou_at_least(options.iou_threshold));
  for (size_t rank = 0; rank < kept.order.size(); ++rank) {
    const uint32_t id = kept.order[rank];
    dets.kept[id] = kept.flags[rank] && nms::stays(dets.scores[id], static_cast<T>(options.min_score));
  }
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                        double iou_threshold, double sigma, double min_score, int64_t method) {
  const char* const op = idxs.has_value() ? "batched_soft_nms" : "soft_nms";
  const Options options{iou_threshold, sigma, min_score, method};
  nms::check_arguments(op, boxes, scores, idxs);
  soft_nms::check_options(op, options);
  return nms::with_one_dtype(boxes, scores, [&](auto tag, const Tensor& b, const Tensor& s) {
    using T = decltype(tag);
    nms::Dets<T> dets(b, s);
    if (method == soft_nms::kHard) {
      run_hard(dets, boxes, scores, idxs, options);
    } else if (method == soft_nms::kGaussian) {
      run_soft<T, true>(dets, idxs, options);
    } else {
      run_soft<T, false>(dets, idxs, options);
    }
    return dets.write(b, dets.boxes);
  });
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("soft_nms", TORCH_BOX(&d2proj::soft_nms_cpu)); }
