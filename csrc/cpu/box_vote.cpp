// Box voting: the boxes that NMS would suppress are averaged into the one that suppresses them.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "../checks.h"
#include "overlaps.h"

namespace atss {
namespace {

struct Vote {
  Box box;
  float score;
  int64_t label;
};

// The votes of one class. order lists its boxes by falling score.
std::vector<Vote> vote_class(
    const Box* boxes, const float* scores, int64_t label, const int32_t* order, int64_t count, float threshold,
    bool soft, float min_score) {
  // An IoU of exactly the threshold belongs to the cluster.
  const float limit = std::nextafter(threshold, -1.f);
  std::vector<int32_t> owner(count), members(count, 0);
  find_owners(boxes, order, count, limit, Owner::kBest, owner.data());
  std::vector<std::array<double, 5>> sums(count, {0, 0, 0, 0, 0});
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    const double score = scores[order[i]];
    auto& sum = sums[owner[i]];
    const double terms[] = {score * box.x1, score * box.y1, score * box.x2, score * box.y2, score};
    for (int k = 0; k < 5; ++k) sum[k] += terms[k];
    ++members[owner[i]];
  }
  std::vector<Vote> votes;
  for (int64_t i = 0; i < count; ++i) {
    const Box& box = boxes[order[i]];
    const float score = scores[order[i]];
    if (owner[i] == i) {
      const auto& sum = sums[i];
      const auto mean = [&](int k) { return static_cast<float>(sum[k] / sum[4]); };
      const bool is_mean = members[i] > 1 && sum[4] > 0;
      votes.push_back({is_mean ? Box{mean(0), mean(1), mean(2), mean(3)} : box, score, label});
    }
    if (soft && members[owner[i]] > 1) {
      const Box& best = boxes[order[owner[i]]];
      const float rescored = score * (1 - iou(best, area(best), box, area(box)));
      if (rescored >= min_score) votes.push_back({box, rescored, label});
    }
  }
  return votes;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> box_vote(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double threshold, bool soft,
    double min_score) {
  check_boxes(boxes, scores, 2);
  check_labels(labels, scores);
  check_threshold(threshold);
  const at::Tensor boxes_ = boxes.to(at::kFloat).contiguous(), scores_ = scores.to(at::kFloat).contiguous();
  const at::Tensor labels_ = labels.to(at::kLong).contiguous();
  const auto* box_data = reinterpret_cast<const Box*>(boxes_.const_data_ptr<float>());
  const auto* score_data = scores_.const_data_ptr<float>();
  const auto* label_data = labels_.const_data_ptr<int64_t>();

  std::vector<int32_t> order = by_falling_score(score_data, scores.numel());
  const std::vector<int64_t> starts = group_by_label(order, label_data);
  const int64_t num_labels = starts.size() - 1;
  std::vector<std::vector<Vote>> votes_of_label(num_labels);
  at::parallel_for(0, num_labels, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      votes_of_label[i] = vote_class(
          box_data, score_data, label_data[order[starts[i]]], order.data() + starts[i], starts[i + 1] - starts[i],
          static_cast<float>(threshold), soft, static_cast<float>(min_score));
  });

  std::vector<Vote> votes;
  for (const auto& some : votes_of_label) votes.insert(votes.end(), some.begin(), some.end());
  std::vector<float> new_scores;
  for (const Vote& vote : votes) new_scores.push_back(vote.score);
  const int64_t count = votes.size();
  at::Tensor out_boxes = at::empty({count, 4}, boxes_.options());
  at::Tensor out_scores = at::empty({count}, boxes_.options());
  at::Tensor out_labels = at::empty({count}, labels_.options());
  Box* next_box = reinterpret_cast<Box*>(out_boxes.mutable_data_ptr<float>());
  float* next_score = out_scores.mutable_data_ptr<float>();
  int64_t* next_label = out_labels.mutable_data_ptr<int64_t>();
  for (const int32_t i : by_falling_score(new_scores.data(), count)) {
    *next_box++ = votes[i].box;
    *next_score++ = votes[i].score;
    *next_label++ = votes[i].label;
  }
  return {out_boxes, out_scores, out_labels};
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CPU, m) {
  m.impl("box_vote", box_vote);
}

} // namespace atss
