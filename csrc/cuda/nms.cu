// Non-maximum suppression of a batch of images in three steps without waiting for the device: sort, compare all pairs
// of an image in parallel into bit masks, and walk down each image's boxes in one block.
#include <ATen/ATen.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <limits>

#include "../box_math.h"
#include "../checks.h"
#include "common.cuh"

namespace atss {
namespace {

constexpr int kBits = 64;  // boxes per mask word
constexpr int kResolveThreads = 512;
constexpr int64_t kSharedBytes = 40 << 10;  // every GPU has 48 KiB per block; the rest is for static shared memory

// Sorted scores, and where the boxes stand, of N images with M boxes each. labels may be null: one class.
struct Candidates {
  const Box* boxes;
  const int64_t *labels, *order;
  const float* scores;
  int64_t size, words;
  float min_score;  // the first score below this and all after it are padding

  __device__ int64_t at(int64_t image, int64_t rank) const {
    return image * size + order[image * size + rank];
  }
  __device__ bool is_padding(int64_t image, int64_t rank) const {
    return scores[image * size + rank] < min_score;
  }
};

// Bit j of word w of masks[image][rank] says that box `rank` suppresses box 64 * w + j, which ranks behind it.
__global__ void compare_pairs(Candidates candidates, float threshold, uint64_t* masks) {
  const int64_t image = blockIdx.z, column_start = int64_t{blockIdx.x} * kBits, row_start = int64_t{blockIdx.y} * kBits;
  if (column_start < row_start || candidates.is_padding(image, row_start) ||
      candidates.is_padding(image, column_start))
    return;
  __shared__ Box columns[kBits];
  __shared__ int64_t column_labels[kBits];
  const int num_columns = static_cast<int>(min(int64_t{kBits}, candidates.size - column_start));
  if (threadIdx.x < num_columns) {
    const int64_t i = candidates.at(image, column_start + threadIdx.x);
    columns[threadIdx.x] = candidates.boxes[i];
    column_labels[threadIdx.x] = candidates.labels ? candidates.labels[i] : 0;
  }
  __syncthreads();
  const int64_t row = row_start + threadIdx.x;
  if (row >= candidates.size) return;
  const int64_t i = candidates.at(image, row);
  const Box box = candidates.boxes[i];
  const float box_area = area(box);
  const int64_t label = candidates.labels ? candidates.labels[i] : 0;
  uint64_t word = 0;
  for (int j = column_start == row_start ? threadIdx.x + 1 : 0; j < num_columns; ++j)
    if (column_labels[j] == label && iou(box, box_area, columns[j], area(columns[j])) > threshold)
      word |= uint64_t{1} << j;
  masks[(image * candidates.size + row) * candidates.words + blockIdx.x] = word;
}

// One block per image. scratch, if not null, replaces shared memory that is too small.
__global__ void resolve(
    Candidates candidates, const uint64_t* masks, int64_t max_detections, uint64_t* scratch, int64_t* keep,
    int64_t* counts) {
  extern __shared__ uint64_t dynamic[];
  __shared__ uint64_t diagonal[kBits], kept_bits;
  __shared__ float scores[kBits];
  __shared__ bool is_done;
  const int64_t image = blockIdx.x, size = candidates.size, words = candidates.words;
  masks += image * size * words;
  keep += image * size;
  uint64_t* const suppressed = scratch ? scratch + image * words : dynamic;
  for (int64_t word = threadIdx.x; word < words; word += blockDim.x) suppressed[word] = 0;
  int64_t count = 0;     // known to thread 0
  float last_score = 0;  // of the max_detections-th box
  for (int64_t word = 0; word < words; ++word) {
    const int64_t start = word * kBits;
    const int num_boxes = static_cast<int>(min(int64_t{kBits}, size - start));
    if (threadIdx.x < num_boxes) {
      diagonal[threadIdx.x] = masks[(start + threadIdx.x) * words + word];
      scores[threadIdx.x] = candidates.scores[image * size + start + threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t gone = suppressed[word];
      kept_bits = 0;
      is_done = false;
      for (int j = 0; j < num_boxes && !is_done; ++j) {
        const bool is_full = max_detections > 0 && count >= max_detections && scores[j] < last_score;
        is_done = scores[j] < candidates.min_score || is_full;
        if (is_done || (gone >> j & 1)) continue;
        gone |= diagonal[j];
        kept_bits |= uint64_t{1} << j;
        keep[count++] = candidates.order[image * size + start + j];
        if (count == max_detections) last_score = scores[j];
      }
    }
    __syncthreads();
    if (is_done) break;
    for (int64_t later = word + 1 + threadIdx.x; later < words; later += blockDim.x) {
      uint64_t gone = suppressed[later];
      for (uint64_t bits = kept_bits; bits; bits &= bits - 1)
        gone |= masks[(start + __ffsll(static_cast<long long>(bits)) - 1) * words + later];
      suppressed[later] = gone;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[image] = count;
}

// boxes (N, M, 4), scores and labels (N, M), checked.
std::tuple<at::Tensor, at::Tensor> nms_of_images(
    const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& labels, double threshold,
    int64_t max_detections, float min_score) {
  check_threshold(threshold);
  const c10::cuda::OptionalCUDAGuard guard(boxes.device());
  const int64_t num_images = scores.size(0), size = scores.size(1), words = at::ceil_div(size, int64_t{kBits});
  TORCH_CHECK_VALUE(num_images <= 65535, "at most 65535 images are possible, got ", num_images);
  TORCH_CHECK_VALUE(words <= 65535, "at most 4194240 boxes per image are possible, got ", size);
  const auto indices = boxes.options().dtype(at::kLong);
  at::Tensor keep = at::full({num_images, size}, -1, indices), counts = at::zeros({num_images}, indices);
  if (scores.numel() == 0) return {keep, counts};
  const at::Tensor boxes_ = boxes.to(at::kFloat).contiguous();
  const at::Tensor labels_ = labels ? labels->to(at::kLong).contiguous() : at::Tensor();
  const auto [sorted_scores, order] =
      at::sort(scores.to(at::kFloat).contiguous(), /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor masks = at::empty({num_images, size, words}, indices);
  const bool fits = words * static_cast<int64_t>(sizeof(uint64_t)) <= kSharedBytes;
  const at::Tensor scratch = fits ? at::Tensor() : at::empty({num_images, words}, indices);
  const Candidates candidates{
      reinterpret_cast<const Box*>(boxes_.const_data_ptr<float>()),
      labels ? labels_.const_data_ptr<int64_t>() : nullptr,
      order.const_data_ptr<int64_t>(),
      sorted_scores.const_data_ptr<float>(),
      size,
      words,
      min_score};
  auto* const mask_data = reinterpret_cast<uint64_t*>(masks.mutable_data_ptr<int64_t>());
  uint64_t* const scratch_data = fits ? nullptr : reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
  const auto stream = at::cuda::getCurrentCUDAStream();
  const dim3 tiles(words, words, num_images);
  compare_pairs<<<tiles, kBits, 0, stream>>>(candidates, static_cast<float>(threshold), mask_data);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const size_t shared_bytes = fits ? words * sizeof(uint64_t) : 0;
  resolve<<<num_images, kResolveThreads, shared_bytes, stream>>>(
      candidates, mask_data, max_detections, scratch_data, keep.mutable_data_ptr<int64_t>(),
      counts.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {keep, counts};
}

at::Tensor nms_of_image(
    const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& labels, double threshold) {
  const auto [keep, counts] = nms_of_images(
      boxes.unsqueeze(0), scores.unsqueeze(0), labels ? std::make_optional(labels->unsqueeze(0)) : std::nullopt,
      threshold, 0, -std::numeric_limits<float>::infinity());
  return keep[0].narrow(0, 0, counts.item<int64_t>()).clone();
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, 2);
  return nms_of_image(boxes, scores, std::nullopt, iou_threshold);
}

at::Tensor batched_nms(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double iou_threshold) {
  check_boxes(boxes, scores, 2);
  check_labels(labels, scores);
  return nms_of_image(boxes, scores, labels, iou_threshold);
}

std::tuple<at::Tensor, at::Tensor> batched_nms_padded(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels, double iou_threshold,
    int64_t max_detections) {
  check_boxes(boxes, scores, 3);
  check_labels(labels, scores);
  // NaN counts as padding, and padding must come last.
  const at::Tensor scores_ = scores.to(at::kFloat);
  return nms_of_images(
      boxes, at::where(scores_ >= 0, scores_, -1.f), labels, iou_threshold, max_detections, 0.f);
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CUDA, m) {
  m.impl("nms", nms);
  m.impl("batched_nms", batched_nms);
  m.impl("batched_nms_padded", batched_nms_padded);
}

} // namespace atss
