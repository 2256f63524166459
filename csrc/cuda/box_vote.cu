// Box voting: one block forms the clusters of one class.
#include <ATen/ATen.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include "../box_math.h"
#include "../checks.h"
#include "common.cuh"

namespace atss {
namespace {

constexpr int kThreads = 256;

// boxes and scores are sorted by class, then by falling score; class c ends at ends[c]. Writes for each box the
// position of the best box of its cluster, the IoU with it, and for each best box the mean of its cluster.
__global__ void form_clusters(
    const Box* boxes, const float* scores, const int64_t* ends, float threshold, int64_t* cluster, float* overlap,
    int64_t* members, Box* means) {
  __shared__ double partial[kThreads / kWarp];
  const int64_t start = blockIdx.x ? ends[blockIdx.x - 1] : 0, end = ends[blockIdx.x];
  for (int64_t i = start + threadIdx.x; i < end; i += blockDim.x) cluster[i] = -1;
  __syncthreads();
  for (int64_t best = start; best < end; ++best) {
    if (cluster[best] >= 0) continue;  // all threads read the same: the last writes came before a barrier
    __syncthreads();
    const Box box = boxes[best];
    const float box_area = area(box);
    double sums[6] = {0, 0, 0, 0, 0, 0};
    for (int64_t i = best + threadIdx.x; i < end; i += blockDim.x) {
      if (cluster[i] >= 0) continue;
      const Box other = boxes[i];
      const float shared_part = iou(box, box_area, other, area(other));
      if (i != best && !(shared_part >= threshold)) continue;
      cluster[i] = best;
      overlap[i] = shared_part;
      const double score = scores[i];
      const double terms[6] = {score * other.x1, score * other.y1, score * other.x2, score * other.y2, score, 1};
      for (int k = 0; k < 6; ++k) sums[k] += terms[k];
    }
    for (int k = 0; k < 6; ++k) sums[k] = sum_over_block(sums[k], partial);
    if (threadIdx.x == 0) {
      const bool is_mean = sums[5] > 1 && sums[4] > 0;
      members[best] = static_cast<int64_t>(sums[5]);
      means[best] = is_mean ? Box{static_cast<float>(sums[0] / sums[4]), static_cast<float>(sums[1] / sums[4]),
                                  static_cast<float>(sums[2] / sums[4]), static_cast<float>(sums[3] / sums[4])}
                            : box;
    }
    __syncthreads();
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> box_vote(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double threshold, bool soft,
    double min_score) {
  check_boxes(boxes, scores, 2);
  check_labels(labels, scores);
  check_threshold(threshold);
  const c10::cuda::OptionalCUDAGuard guard(boxes.device());
  const auto floats = boxes.options().dtype(at::kFloat), integers = boxes.options().dtype(at::kLong);
  if (scores.numel() == 0) return {at::empty({0, 4}, floats), at::empty({0}, floats), at::empty({0}, integers)};
  const at::Tensor by_score = std::get<1>(at::sort(scores.to(at::kFloat), /*stable=*/true, /*dim=*/0, /*descending=*/true));
  const at::Tensor by_label = std::get<1>(
      at::sort(labels.to(at::kLong).index_select(0, by_score), /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const at::Tensor order = by_score.index_select(0, by_label);
  const at::Tensor boxes_ = boxes.to(at::kFloat).index_select(0, order), scores_ = scores.to(at::kFloat).index_select(0, order);
  const at::Tensor labels_ = labels.to(at::kLong).index_select(0, order);
  const at::Tensor ends = std::get<2>(at::unique_consecutive(labels_, false, /*return_counts=*/true)).cumsum(0);
  const at::Tensor cluster = at::empty_like(labels_), members = at::zeros_like(labels_);
  const at::Tensor overlap = at::empty_like(scores_), means = at::empty_like(boxes_);
  form_clusters<<<ends.numel(), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
      reinterpret_cast<const Box*>(boxes_.const_data_ptr<float>()), scores_.const_data_ptr<float>(),
      ends.const_data_ptr<int64_t>(), static_cast<float>(threshold), cluster.mutable_data_ptr<int64_t>(),
      overlap.mutable_data_ptr<float>(), members.mutable_data_ptr<int64_t>(),
      reinterpret_cast<Box*>(means.mutable_data_ptr<float>()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  // Means come before members of the same score, and both in the order of the boxes.
  const at::Tensor original = at::argsort(order);
  const auto select = [&](const at::Tensor& is_chosen) {
    return original.index_select(0, at::nonzero(is_chosen.index_select(0, original)).squeeze(1));
  };
  const at::Tensor best = select(members);
  at::Tensor new_boxes = means.index_select(0, best), new_scores = scores_.index_select(0, best);
  at::Tensor new_labels = labels_.index_select(0, best);
  if (soft) {
    const at::Tensor rescored = scores_ * (1 - overlap);
    const at::Tensor stays = select((members.index_select(0, cluster) > 1).logical_and(rescored >= min_score));
    new_boxes = at::cat({new_boxes, boxes_.index_select(0, stays)});
    new_scores = at::cat({new_scores, rescored.index_select(0, stays)});
    new_labels = at::cat({new_labels, labels_.index_select(0, stays)});
  }
  const auto [sorted_scores, falling] = at::sort(new_scores, /*stable=*/true, /*dim=*/0, /*descending=*/true);
  return {new_boxes.index_select(0, falling), sorted_scores, new_labels.index_select(0, falling)};
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CUDA, m) {
  m.impl("box_vote", box_vote);
}

} // namespace atss
