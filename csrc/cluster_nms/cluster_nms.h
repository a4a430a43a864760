// Cluster-NMS: what the CPU and the CUDA kernels share.
//
// The iteration of the paper ends where greedy NMS ends (its proposition 1), so both devices run the greedy engine and
// then do with the boxes it kept what the variant asks for.
#pragma once

#include "diou_nms/diou_nms.h"
#include "nms/nms_decay.h"

namespace d2proj {
namespace cluster_nms {

enum Variant : int64_t { kPlain = 0, kScorePenalty = 1, kDistance = 2, kWeighted = 3 };

struct Options {
  double iou_threshold;
  int64_t variant;
  double beta, sigma, min_score;
};

inline void check_options(const char* op, const Options& options) {
  check(options.variant >= kPlain && options.variant <= kWeighted, op, "variant must be 0 to 3, got ", options.variant);
  if (options.variant == kDistance) diou_nms::check_beta(op, options.beta);
  check(options.variant != kScorePenalty || options.sigma > 0, op, "sigma must be above 0, got ", options.sigma);
}

// Sums are taken in double whatever the boxes are, so their order shows in the last place of a double alone.

// Score penalty: the product of exp(-iou^2 / sigma) over better boxes that were kept; `squares` is the sum of iou^2.
template <typename T>
D2_HD T penalised(T score, double squares, double sigma) {
  if (!(score > T(0)) || !(squares > 0)) return score;
  return score * static_cast<T>(nms::exp_nonpositive(-(squares / sigma)));
}

D2_HD double square(double iou) { return product(iou, iou); }

// Weighted: the mean of a kept box, weight `score`, and worse ones, weight iou * score.
template <typename T>
struct Mean {
  double weight, x1, y1, x2, y2;
  bool alone;

  D2_HD static Mean of(const Box<T>& box, T score) {
    Mean mean{0, 0, 0, 0, 0, true};
    mean.add(box, score);
    mean.alone = true;
    return mean;
  }

  D2_HD void add(const Box<T>& box, double w) {
    weight += w;
    x1 += product<double>(w, box.x1);
    y1 += product<double>(w, box.y1);
    x2 += product<double>(w, box.x2);
    y2 += product<double>(w, box.y2);
    alone = false;
  }

  // `box` where there is no mean: nothing else in it, weights that cancel or are not finite.
  D2_HD Box<T> box(const Box<T>& self) const {
    if (alone || !(weight > 0) || weight > 1e300) return self;
    return {T(x1 / weight), T(y1 / weight), T(x2 / weight), T(y2 / weight)};
  }
};

}  // namespace cluster_nms
}  // namespace d2proj
