// Fusing the boxes of an ensemble's models: what the CPU and the CUDA kernel share.
//
// Both take the boxes of a label by descending score. A box joins the cluster that it overlaps most, above a threshold,
// or begins one; so clusters depend on the order, and every sum is taken in it. Arithmetic is float64 with the sums of
// coordinates rounded to float32 at each step: what the package ensemble-boxes does under numpy 2, bit for bit.
#pragma once

#include <cstdint>

#include "common/box_iou.h"

namespace d2proj {
namespace fusion {

enum class Confidence : int { kAverage = 0, kMax = 1, kBoxAndModel = 2, kAbsentModelAware = 3 };

struct Settings {
  bool weighted_by_overlap;  // non-maximum weighted; else weighted boxes fusion
  Confidence confidence;
  bool allows_overflow;
  double iou_threshold, skip_threshold;
  int64_t models;
};

struct Candidate {
  Box<double> box;
  double score;  // times the model's weight
  double weight;
  int64_t model;
};

D2_HD double to_unit(double x) { return x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x; }

// Corners in order and within [0, 1]. False if nothing is left: a box without area, or one that scores too little.
D2_HD bool admit(Candidate& candidate, double score, double skip_threshold) {
  if (!(score >= skip_threshold)) return false;
  const Box<double> given = candidate.box;
  const bool swap_x = given.x2 < given.x1, swap_y = given.y2 < given.y1;
  candidate.box = {to_unit(swap_x ? given.x2 : given.x1), to_unit(swap_y ? given.y2 : given.y1),
                   to_unit(swap_x ? given.x1 : given.x2), to_unit(swap_y ? given.y1 : given.y2)};
  candidate.score = score * candidate.weight;
  return box_area(candidate.box) != 0.0;
}

D2_HD double overlap(const Box<double>& a, const Box<double>& b) { return box_iou(a, box_area(a), b, box_area(b)); }

// A cluster; the sums run over its members in order.
struct Cluster {
  Box<double> box;  // what later boxes are compared with
  double score;     // of the first member, the best
  float sums[4];    // of weighted coordinates
  double confidence, weight;
  int64_t count;
};

// Rounded to float32. GCC 12 takes four of these for nothing (conversion there and back) once it has put them into an
// AVX register; a value that passes through one of its own cannot be.
D2_HD float to_float(double value) {
  float rounded = static_cast<float>(value);
#if !defined(__CUDA_ARCH__) && defined(__x86_64__)
  asm("" : "+x"(rounded));
#elif !defined(__CUDA_ARCH__) && defined(__aarch64__)
  asm("" : "+w"(rounded));
#endif
  return rounded;
}

D2_HD void add(Cluster& cluster, const Candidate& candidate, bool weighted_by_overlap) {
  const double share =
      weighted_by_overlap ? product(candidate.score, overlap(candidate.box, cluster.box)) : candidate.score;
  const double coordinates[4] = {candidate.box.x1, candidate.box.y1, candidate.box.x2, candidate.box.y2};
  for (int i = 0; i < 4; ++i) {
    cluster.sums[i] = to_float(static_cast<double>(cluster.sums[i]) + product(share, coordinates[i]));
  }
  cluster.confidence += share;
  cluster.weight += candidate.weight;
  ++cluster.count;
}

D2_HD Box<double> mean_box(const Cluster& cluster) {
  const double c = cluster.confidence;
  return {to_float(cluster.sums[0] / c), to_float(cluster.sums[1] / c), to_float(cluster.sums[2] / c),
          to_float(cluster.sums[3] / c)};
}

D2_HD Cluster begin_cluster(const Candidate& candidate, bool weighted_by_overlap) {
  Cluster cluster{candidate.box, candidate.score, {0.0f, 0.0f, 0.0f, 0.0f}, 0.0, 0.0, 0};
  add(cluster, candidate, weighted_by_overlap);
  return cluster;
}

D2_HD void join(Cluster& cluster, const Candidate& candidate, bool weighted_by_overlap) {
  add(cluster, candidate, weighted_by_overlap);
  // The fused box moves with each member; non-maximum weighted compares with the best box throughout.
  if (!weighted_by_overlap) cluster.box = mean_box(cluster);
}

// `models`: a bit for each model, 64 to a word.
using ModelWord = unsigned long long;
D2_HD int64_t model_words(int64_t models) { return (models + 63) / 64; }
D2_HD void add_model(ModelWord* models, int64_t model) { models[model / 64] |= ModelWord(1) << (model % 64); }

// Sum of the weights of the models that are in the cluster (or of those that are not).
D2_HD double weight_of(const ModelWord* models, const double* weights, int64_t count, bool present) {
  double sum = 0.0;
  for (int64_t m = 0; m < count; ++m) {
    if (((models[m / 64] >> (m % 64)) & 1) == (present ? 1u : 0u)) sum += weights[m];
  }
  return sum;
}

// The fused box (in `cluster.box`) and its score (in `cluster.score`).
D2_HD void finish(Cluster& cluster, const ModelWord* models, const double* weights, double total, double largest,
                  const Settings& settings) {
  if (settings.weighted_by_overlap) {
    cluster.box = mean_box(cluster);
    cluster.score = to_float(cluster.score);
    return;
  }
  const double count = static_cast<double>(cluster.count);
  const bool many = cluster.count > 1;
  const bool best = settings.confidence == Confidence::kMax;
  const double weight = many ? to_float(cluster.weight) : cluster.weight;
  const double score = !many ? cluster.score : to_float(best ? cluster.score : cluster.confidence / count);
  if (settings.confidence == Confidence::kBoxAndModel) {
    const double fused = product(score, count) / weight;
    cluster.score = product(fused, weight_of(models, weights, settings.models, true)) / total;
  } else if (settings.confidence == Confidence::kAbsentModelAware) {
    cluster.score = product(score, count) / (weight + weight_of(models, weights, settings.models, false));
  } else if (best) {
    cluster.score = score / largest;
  } else {
    const double limit = static_cast<double>(settings.models);
    cluster.score = product(score, settings.allows_overflow || count < limit ? count : limit) / total;
  }
}

}  // namespace fusion
}  // namespace d2proj
