// Non-maximum suppression: sort by score, suppress greedily within each class, keep what no other box suppresses.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "radix_sort.h"
#include "greedy_nms.h"

namespace atss {
namespace {

// Below this many boxes a second thread costs more than it brings.
constexpr int64_t kBoxesPerThread = 1000;

const Box* box_data(const at::Tensor& boxes) {
  return reinterpret_cast<const Box*>(boxes.const_data_ptr<float>());
}

// Those of the boxes listed by falling score that NMS keeps, in the same order. Null labels: one class.
std::vector<int32_t> keep_boxes(
    const Box* boxes, std::vector<int32_t> by_score, const int64_t* labels, float threshold) {
  if (by_score.empty()) return by_score;
  const int64_t count = by_score.size();
  std::vector<int32_t> by_label = by_score;
  const std::vector<int64_t> starts = labels ? sort_by_label(by_label, labels) : std::vector<int64_t>{0, count};
  const int64_t num_labels = starts.size() - 1;
  const int32_t last_index = *std::max_element(by_score.begin(), by_score.end());
  std::vector<int32_t> suppressor(count);
  std::vector<char> is_suppressed(last_index + 1);
  const int64_t grain = std::max<int64_t>(1, num_labels * kBoxesPerThread / count);
  at::parallel_for(0, num_labels, grain, [&](int64_t first, int64_t last) {
    for (int64_t label = first; label < last; ++label) {
      const int64_t start = starts[label], size = starts[label + 1] - start;
      greedy_nms(boxes, by_label.data() + start, size, threshold, Suppressor::kAny, suppressor.data() + start);
      for (int64_t i = 0; i < size; ++i) is_suppressed[by_label[start + i]] = suppressor[start + i] != i;
    }
  });
  by_score.erase(
      std::remove_if(by_score.begin(), by_score.end(), [&](int32_t i) { return is_suppressed[i]; }), by_score.end());
  return by_score;
}

at::Tensor keep_tensor(const at::Tensor& boxes, const at::Tensor& scores, const int64_t* labels, double threshold) {
  check_threshold(threshold);
  const at::Tensor boxes_ = boxes.to(at::kFloat).contiguous(), scores_ = scores.to(at::kFloat).contiguous();
  const auto keep = keep_boxes(
      box_data(boxes_), argsort_descending(scores_.const_data_ptr<float>(), scores.numel()), labels,
      static_cast<float>(threshold));
  at::Tensor indices = at::empty({static_cast<int64_t>(keep.size())}, boxes.options().dtype(at::kLong));
  std::copy(keep.begin(), keep.end(), indices.mutable_data_ptr<int64_t>());
  return indices;
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, 2);
  return keep_tensor(boxes, scores, nullptr, iou_threshold);
}

at::Tensor batched_nms(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double iou_threshold) {
  check_boxes(boxes, scores, 2);
  check_labels(labels, scores);
  const at::Tensor labels_ = labels.to(at::kLong).contiguous();
  return keep_tensor(boxes, scores, labels_.const_data_ptr<int64_t>(), iou_threshold);
}

// How many kept boxes to return: at most max_detections if that is positive, but all that tie with the last.
int64_t limit_detections(const std::vector<int32_t>& keep, const float* scores, int64_t max_detections) {
  const int64_t count = keep.size();
  if (max_detections <= 0 || count <= max_detections) return count;
  const auto ties = [&, last = scores[keep[max_detections - 1]]](int32_t i) { return scores[i] >= last; };
  return std::partition_point(keep.begin() + max_detections, keep.end(), ties) - keep.begin();
}

std::tuple<at::Tensor, at::Tensor> batched_nms_padded(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double iou_threshold,
    int64_t max_detections) {
  check_boxes(boxes, scores, 3);
  check_labels(labels, scores);
  check_threshold(iou_threshold);
  const int64_t num_images = scores.size(0), size = scores.size(1);
  const at::Tensor boxes_ = boxes.to(at::kFloat).contiguous(), labels_ = labels.to(at::kLong).contiguous();
  const at::Tensor scores_ = scores.to(at::kFloat).contiguous();
  at::Tensor keep = at::full({num_images, size}, -1, labels_.options());
  at::Tensor counts = at::empty({num_images}, labels_.options());
  int64_t* const keep_data = keep.mutable_data_ptr<int64_t>();
  int64_t* const counts_data = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, num_images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      const int64_t start = image * size;
      const float* image_scores = scores_.const_data_ptr<float>() + start;
      auto order = argsort_descending(image_scores, size);
      const auto is_padding = [&](int32_t i) { return !(image_scores[i] >= 0); };
      order.erase(std::remove_if(order.begin(), order.end(), is_padding), order.end());
      const auto kept = keep_boxes(
          box_data(boxes_) + start, std::move(order), labels_.const_data_ptr<int64_t>() + start,
          static_cast<float>(iou_threshold));
      counts_data[image] = limit_detections(kept, image_scores, max_detections);
      std::copy_n(kept.begin(), counts_data[image], keep_data + start);
    }
  });
  return {keep, counts};
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CPU, m) {
  m.impl("nms", nms);
  m.impl("batched_nms", batched_nms);
  m.impl("batched_nms_padded", batched_nms_padded);
}

} // namespace atss
