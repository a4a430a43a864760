// Weighted boxes fusion and non-maximum weighted on the CPU: labels shared among threads, clusters in SIMD lanes.
#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <vector>

#include "box_fusion/box_fusion_args.h"
#include "common/lanes.h"
#include "nms/nms_rank.h"

namespace d2proj {
namespace {

using fusion::Candidate;
using fusion::Cluster;
using fusion::ModelWord;
using fusion::Settings;

// The clusters of one label.
class Clusters {
 public:
  explicit Clusters(const Settings& settings) : settings_(settings), words_(fusion::model_words(settings.models)) {}

  void reset(int64_t most) {
    stride_ = most + kOverread;
    corners_.assign(5 * stride_, 0.0);
    models_.assign(most * words_, 0);
    clusters_.clear();
  }

  template <simd::Level L>
  D2_INLINE void take(const Candidate& candidate) {
    int64_t index = best<L>(candidate.box);
    if (index < 0) {
      index = clusters_.size();
      clusters_.push_back(fusion::begin_cluster(candidate, settings_.weighted_by_overlap));
      place(index);
    } else {
      fusion::join(clusters_[index], candidate, settings_.weighted_by_overlap);
      if (!settings_.weighted_by_overlap) place(index);
    }
    fusion::add_model(&models_[index * words_], candidate.model);
  }

  void finish(const double* weights, double total, double largest) {
    for (size_t k = 0; k < clusters_.size(); ++k) {
      fusion::finish(clusters_[k], &models_[k * words_], weights, total, largest, settings_);
    }
  }

  const std::vector<Cluster>& list() const { return clusters_; }

 private:
  void place(int64_t index) {
    const Box<double>& box = clusters_[index].box;
    const double fields[5] = {box.x1, box.y1, box.x2, box.y2, box_area(box)};
    for (int f = 0; f < 5; ++f) corners_[f * stride_ + index] = fields[f];
  }

  // The first of the clusters with the highest IoU, if that is above the threshold; else -1.
  template <simd::Level L>
  D2_INLINE int64_t best(const Box<double>& box) const {
    using V = typename simd::Native<L, double>::Vector;
    constexpr int kLanes = simd::Native<L, double>::kLanes;
    constexpr double kSlack = 1.0 - 1e-12;  // outweighs the rounding of the product
    const V zero = {};
    const double area = box_area(box);
    const int64_t count = clusters_.size();
    int64_t found = -1;
    double highest = settings_.iou_threshold;
    for (int64_t first = 0; first < count; first += kLanes) {
      V x1, y1, x2, y2, areas;
      V* const fields[5] = {&x1, &y1, &x2, &y2, &areas};
      for (int f = 0; f < 5; ++f) simd::load(*fields[f], &corners_[f * stride_ + first]);
      x1 = x1 > zero + box.x1 ? x1 : zero + box.x1;
      y1 = y1 > zero + box.y1 ? y1 : zero + box.y1;
      const V width = (x2 < zero + box.x2 ? x2 : zero + box.x2) - x1;
      const V height = (y2 < zero + box.y2 ? y2 : zero + box.y2) - y1;
      const V inter = (width > zero ? width : zero) * (height > zero ? height : zero);
      // A product decides nearly always; only where it cannot is the quotient worth its price.
      const double bound = highest > 0.0 ? highest * kSlack : highest;
      uint32_t near = simd::bits<L, double>(inter >= (areas + area - inter) * bound);
      for (; near != 0; near &= near - 1) {
        const int64_t k = first + __builtin_ctz(near);
        if (k >= count) break;
        const double iou = box_iou(clusters_[k].box, corners_[4 * stride_ + k], box, area);
        if (iou > highest) {
          highest = iou;
          found = k;
        }
      }
    }
    return found;
  }

  static constexpr int64_t kOverread = 8;

  const Settings settings_;
  const int64_t words_;
  int64_t stride_ = 0;
  std::vector<double> corners_;  // x1 | y1 | x2 | y2 | area, `stride_` clusters each
  std::vector<ModelWord> models_;
  std::vector<Cluster> clusters_;
};

struct TakeAll {
  template <simd::Level L>
  static D2_INLINE void run(Clusters* clusters, const Candidate* candidates, const uint32_t* begin,
                            const uint32_t* end) {
    for (const uint32_t* i = begin; i < end; ++i) clusters->take<L>(candidates[*i]);
  }
};

// Boxes worth fusing, in the order given, and the number of each one's label; labels count up as they first appear.
struct Admitted {
  std::vector<Candidate> candidates;
  std::vector<uint32_t> label_of;
  std::vector<int64_t> labels;
};

template <typename T>
Admitted admit_all(const char* op, const fusion::Inputs& inputs, const Settings& settings) {
  const Box<T>* const boxes = static_cast<const Box<T>*>(inputs.boxes.const_data_ptr());
  const T* const scores = static_cast<const T*>(inputs.scores.const_data_ptr());
  const int64_t* const labels = static_cast<const int64_t*>(inputs.labels.const_data_ptr());
  const int64_t* const models = static_cast<const int64_t*>(inputs.models.const_data_ptr());
  const double* const weights = static_cast<const double*>(inputs.weights.const_data_ptr());
  Admitted admitted;
  admitted.candidates.reserve(inputs.count);
  admitted.label_of.reserve(inputs.count);
  std::unordered_map<int64_t, uint32_t> numbers;
  for (int64_t i = 0; i < inputs.count; ++i) {
    check(models[i] >= 0 && models[i] < settings.models, op, "models[", i, "] must be from 0 to ", settings.models - 1,
          ", got ", models[i]);
    const Box<T>& box = boxes[i];
    Candidate candidate{{box.x1, box.y1, box.x2, box.y2}, 0.0, weights[models[i]], models[i]};
    if (!fusion::admit(candidate, scores[i], settings.skip_threshold)) continue;
    const auto [number, fresh] = numbers.try_emplace(labels[i], admitted.labels.size());
    if (fresh) admitted.labels.push_back(labels[i]);
    admitted.candidates.push_back(candidate);
    admitted.label_of.push_back(number->second);
  }
  return admitted;
}

// Indices by descending score; of equal scores the last comes first.
template <typename ScoreOf>
std::vector<uint32_t> rank_last_first(int64_t count, const ScoreOf& score_of) {
  std::vector<double> reversed(count);
  for (int64_t i = 0; i < count; ++i) reversed[count - 1 - i] = score_of(i);
  std::vector<uint32_t> order = nms::rank_by_score<double>(reversed.data(), count);
  for (uint32_t& index : order) index = static_cast<uint32_t>(count - 1 - index);
  return order;
}

// The clusters of all labels, labels in the order of their first box.
std::vector<std::vector<Cluster>> fuse(const Admitted& admitted, const fusion::Inputs& inputs,
                                       const Settings& settings) {
  constexpr int64_t kWorthAThread = 2048;  // boxes
  const std::vector<Candidate>& candidates = admitted.candidates;
  const int64_t count = candidates.size(), labels = admitted.labels.size();
  const std::vector<uint32_t> order = rank_last_first(count, [&](int64_t i) { return candidates[i].score; });
  std::vector<uint32_t> begin(labels + 1, 0), by_label(count);
  for (const uint32_t label : admitted.label_of) ++begin[label + 1];
  for (int64_t l = 0; l < labels; ++l) begin[l + 1] += begin[l];
  std::vector<uint32_t> next_slot(begin.begin(), begin.end() - 1);
  for (const uint32_t i : order) by_label[next_slot[admitted.label_of[i]]++] = i;

  const double* const weights = static_cast<const double*>(inputs.weights.const_data_ptr());
  double total = 0.0, largest = settings.models > 0 ? weights[0] : 0.0;
  for (int64_t m = 0; m < settings.models; ++m) {
    total += weights[m];
    largest = std::max(largest, weights[m]);
  }
  std::vector<std::vector<Cluster>> fused(labels);
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t) {
    Clusters clusters(settings);
    for (int64_t l = next++; l < labels; l = next++) {
      const uint32_t *const from = by_label.data() + begin[l], *const to = by_label.data() + begin[l + 1];
      clusters.reset(to - from);
      simd::dispatch<TakeAll>(&clusters, candidates.data(), from, to);
      clusters.finish(weights, total, largest);
      fused[l] = clusters.list();
    }
  };
  const nms::Parallel parallel;
  const int64_t workers = std::min({parallel.threads(), labels, count / kWorthAThread});
  workers > 1 ? parallel(workers, work) : work(0);
  return fused;
}

template <typename T>
fusion::Fused run(const char* op, const fusion::Inputs& inputs, const Settings& settings) {
  const Admitted admitted = admit_all<T>(op, inputs, settings);
  const std::vector<std::vector<Cluster>> fused = fuse(admitted, inputs, settings);
  std::vector<std::pair<const Cluster*, int64_t>> all;
  for (size_t l = 0; l < fused.size(); ++l) {
    for (const Cluster& cluster : fused[l]) all.emplace_back(&cluster, admitted.labels[l]);
  }
  const int64_t count = all.size();
  auto [boxes, scores, labels] = fusion::empty_result(inputs, count);
  Box<T>* to_box = static_cast<Box<T>*>(boxes.mutable_data_ptr());
  T* to_score = static_cast<T*>(scores.mutable_data_ptr());
  int64_t* to_label = static_cast<int64_t*>(labels.mutable_data_ptr());
  for (const uint32_t i : rank_last_first(count, [&](int64_t k) { return all[k].first->score; })) {
    const auto [cluster, label] = all[i];
    const Box<double>& box = cluster->box;
    *to_box++ = {static_cast<T>(box.x1), static_cast<T>(box.y1), static_cast<T>(box.x2), static_cast<T>(box.y2)};
    *to_score++ = static_cast<T>(cluster->score);
    *to_label++ = label;
  }
  return {boxes, scores, labels};
}

fusion::Fused run_any(const char* op, const fusion::Inputs& inputs, const Settings& settings) {
  return inputs.type == ScalarType::Double ? run<double>(op, inputs, settings) : run<float>(op, inputs, settings);
}

fusion::Fused weighted_boxes_fusion_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                                        const Tensor& models, const Tensor& weights, double iou_thr,
                                        double skip_box_thr, int64_t conf_type, bool allows_overflow) {
  const fusion::Inputs inputs = fusion::prepare_inputs("weighted_boxes_fusion", boxes, scores, labels, models, weights);
  const Settings settings = fusion::fusion_settings(iou_thr, skip_box_thr, conf_type, allows_overflow, weights);
  return run_any("weighted_boxes_fusion", inputs, settings);
}

fusion::Fused non_maximum_weighted_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                                       const Tensor& models, const Tensor& weights, double iou_thr,
                                       double skip_box_thr) {
  const fusion::Inputs inputs = fusion::prepare_inputs("non_maximum_weighted", boxes, scores, labels, models, weights);
  return run_any("non_maximum_weighted", inputs, fusion::weighted_settings(iou_thr, skip_box_thr, weights));
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("weighted_boxes_fusion", TORCH_BOX(&d2proj::weighted_boxes_fusion_cpu));
  m.impl("non_maximum_weighted", TORCH_BOX(&d2proj::non_maximum_weighted_cpu));
}
