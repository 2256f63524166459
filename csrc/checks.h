// What the operators expect of their arguments.
#pragma once
#include <ATen/core/Tensor.h>

#include <limits>

namespace atss {

// (..., 4) boxes with one score and perhaps one label each; at most 2^31 - 1 boxes, for 32-bit ranks.
inline void check_boxes(const at::Tensor& boxes, const at::Tensor& scores, int64_t dim) {
  TORCH_CHECK_VALUE(
      boxes.dim() == dim && boxes.size(-1) == 4, "boxes must be (", dim == 3 ? "N, " : "", "K, 4), got ", boxes.sizes());
  TORCH_CHECK_VALUE(
      scores.sizes() == boxes.sizes().slice(0, dim - 1),
      "scores must have one value per box, ", boxes.sizes().slice(0, dim - 1), ", got ", scores.sizes());
  TORCH_CHECK_VALUE(
      boxes.is_floating_point() && scores.is_floating_point(),
      "boxes and scores must be floating point, got ", boxes.scalar_type(), " and ", scores.scalar_type());
  TORCH_CHECK_VALUE(
      boxes.device() == scores.device(),
      "boxes and scores must be on one device, got ", boxes.device(), " and ", scores.device());
  TORCH_CHECK_VALUE(
      scores.numel() < std::numeric_limits<int32_t>::max(), "at most 2^31 - 1 boxes are possible, got ", scores.numel());
}

inline void check_labels(const at::Tensor& labels, const at::Tensor& scores) {
  TORCH_CHECK_VALUE(
      labels.sizes() == scores.sizes(), "labels must have one value per box, ", scores.sizes(), ", got ", labels.sizes());
  TORCH_CHECK_VALUE(
      at::isIntegralType(labels.scalar_type(), /*includeBool=*/false),
      "labels must be integers, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(
      labels.device() == scores.device(),
      "labels and scores must be on one device, got ", labels.device(), " and ", scores.device());
}

inline void check_threshold(double threshold) {
  TORCH_CHECK_VALUE(threshold >= 0, "the IoU threshold must be 0 or more, got ", threshold);
}

inline void check_focal(const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  TORCH_CHECK_VALUE(
      logits.dim() == 2 && logits.is_floating_point(),
      "logits must be floating point of shape (K, C), got ", logits.scalar_type(), " of ", logits.sizes());
  TORCH_CHECK_VALUE(
      labels.dim() == 1 && labels.size(0) == logits.size(0) && labels.scalar_type() == at::kLong,
      "labels must be int64 of shape (", logits.size(0), ",), got ", labels.scalar_type(), " of ", labels.sizes());
  TORCH_CHECK_VALUE(
      logits.device() == labels.device(),
      "logits and labels must be on one device, got ", logits.device(), " and ", labels.device());
  TORCH_CHECK_VALUE(gamma >= 0, "gamma must be 0 or more, got ", gamma);
  TORCH_CHECK_VALUE(alpha >= 0 && alpha <= 1, "alpha must be from 0 to 1, got ", alpha);
}

} // namespace atss
