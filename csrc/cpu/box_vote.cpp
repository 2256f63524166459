// Box voting: the boxes that NMS would suppress are averaged into the one that suppresses them.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "radix_sort.h"
#include "greedy_nms.h"

namespace atss {
namespace {

// The outcome of each box, in the order of the boxes.
struct Votes {
  std::vector<char> is_kept, is_member;  // members of soft votes that keep enough of their score
  std::vector<Box> means;                // of the clusters of kept boxes
  std::vector<float> rescored;           // of members

  explicit Votes(int64_t count) : is_kept(count), is_member(count), means(count), rescored(count) {}
};

// Forms the clusters of one class. order lists its boxes by falling score.
void vote(
    const Box* boxes, const float* scores, const int32_t* order, int64_t count, float threshold, bool soft,
    float min_score, Votes& votes) {
  // An IoU of exactly the threshold belongs to the cluster.
  const float limit = std::nextafter(threshold, -1.f);
  std::vector<int32_t> cluster(count), num_members(count);
  greedy_nms(boxes, order, count, limit, Suppressor::kHighestScore, cluster.data());
  std::vector<std::array<double, 5>> sums(count);
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    const double score = scores[order[i]];
    const double terms[] = {score * box.x1, score * box.y1, score * box.x2, score * box.y2, score};
    for (int k = 0; k < 5; ++k) sums[cluster[i]][k] += terms[k];
    ++num_members[cluster[i]];
  }
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    if (cluster[i] == i) {
      const auto& sum = sums[i];
      const auto mean = [&](int k) { return static_cast<float>(sum[k] / sum[4]); };
      const bool is_mean = num_members[i] > 1 && sum[4] > 0;
      votes.is_kept[order[i]] = true;
      votes.means[order[i]] = is_mean ? Box{mean(0), mean(1), mean(2), mean(3)} : box;
    }
    if (soft && num_members[cluster[i]] > 1) {
      const Box& best = boxes[order[cluster[i]]];
      const float rescored = scores[order[i]] * (1 - iou(best, area(best), box, area(box)));
      votes.is_member[order[i]] = rescored >= min_score;
      votes.rescored[order[i]] = rescored;
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> box_vote(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double threshold, bool soft,
    double min_score) {
  check_boxes(boxes, scores, 2);
  check_labels(labels, scores);
  check_threshold(threshold);
  const int64_t count = scores.numel();
  const at::Tensor boxes_ = boxes.to(at::kFloat).contiguous(), scores_ = scores.to(at::kFloat).contiguous();
  const at::Tensor labels_ = labels.to(at::kLong).contiguous();
  const auto* box_data = reinterpret_cast<const Box*>(boxes_.const_data_ptr<float>());
  const auto* score_data = scores_.const_data_ptr<float>();
  const auto* label_data = labels_.const_data_ptr<int64_t>();
  std::vector<int32_t> order = argsort_descending(score_data, count);
  const std::vector<int64_t> starts = sort_by_label(order, label_data);
  Votes votes(count);
  at::parallel_for(0, starts.size() - 1, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      vote(
          box_data, score_data, order.data() + starts[i], starts[i + 1] - starts[i], static_cast<float>(threshold),
          soft, static_cast<float>(min_score), votes);
  });

  // Means come before members of the same score, and both in the order of the boxes.
  std::vector<int32_t> sources;
  std::vector<float> new_scores;
  for (int64_t i = 0; i < count; ++i)
    if (votes.is_kept[i]) {
      sources.push_back(i);
      new_scores.push_back(score_data[i]);
    }
  const int64_t num_means = sources.size();
  for (int64_t i = 0; i < count; ++i)
    if (votes.is_member[i]) {
      sources.push_back(i);
      new_scores.push_back(votes.rescored[i]);
    }
  const int64_t num_votes = sources.size();
  at::Tensor out_boxes = at::empty({num_votes, 4}, boxes_.options());
  at::Tensor out_scores = at::empty({num_votes}, boxes_.options());
  at::Tensor out_labels = at::empty({num_votes}, labels_.options());
  Box* next_box = reinterpret_cast<Box*>(out_boxes.mutable_data_ptr<float>());
  float* next_score = out_scores.mutable_data_ptr<float>();
  int64_t* next_label = out_labels.mutable_data_ptr<int64_t>();
  for (const int32_t i : argsort_descending(new_scores.data(), num_votes)) {
    *next_box++ = i < num_means ? votes.means[sources[i]] : box_data[sources[i]];
    *next_score++ = new_scores[i];
    *next_label++ = label_data[sources[i]];
  }
  return {out_boxes, out_scores, out_labels};
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CPU, m) {
  m.impl("box_vote", box_vote);
}

} // namespace atss
