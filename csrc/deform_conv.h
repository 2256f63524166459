// Deformable convolution (DCNv1, arXiv 1703.06211; DCNv2, arXiv 1811.11168) for any device.
//
// The input is sampled at the offset taps of each output pixel into a row of "columns"; what remains is a pointwise
// convolution of these rows, forward and backward, and that is left to the library. Rows of all images are worked off
// in bands, so that the columns of a band stay in the cache (CPU) or within bounded memory (CUDA). With channels last,
// the four neighbours of a sample are four contiguous runs of channels.
#pragma once
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "inline.h"

namespace atss::deform_conv {

// What a kernel needs to know; passed by value to CUDA kernels.
struct Shape {
  int64_t images, channels, height, width, out_channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups, offset_groups;
  bool has_mask;

  C10_HOST_DEVICE int64_t taps() const {
    return kernel[0] * kernel[1];
  }
  C10_HOST_DEVICE int64_t pixels() const {  // output pixels of an image
    return out_height * out_width;
  }
  C10_HOST_DEVICE int64_t group_channels() const {
    return channels / groups;
  }
  C10_HOST_DEVICE int64_t offset_channels() const {  // channels that share their offsets
    return channels / offset_groups;
  }
  // A row of columns is ordered by group, tap, channel within the group.
  C10_HOST_DEVICE int64_t column(int64_t channel, int64_t tap) const {
    const int64_t size = group_channels();
    return (channel / size * taps() + tap) * size + channel % size;
  }
};

// Where an output pixel samples for one tap and offset group, and how the four neighbours share in the sample.
template <typename T>
struct Sample {
  int64_t offset_index, mask_index;  // into offset (the vertical one) and mask
  T mask;
  int64_t neighbor[4];  // pixel of the input, counted over all images, or -1 outside
  T weight[4], by_y[4], by_x[4];  // bilinear weights and their derivatives

  Sample() = default;

  template <typename Value>
  C10_HOST_DEVICE ATSS_FORCE_INLINE Sample(
      const Shape& shape, const Value* offsets, const Value* masks, int64_t row, int64_t offset_group, int64_t tap) {
    const int64_t image = row / shape.pixels(), pixel = row % shape.pixels();
    const int64_t first_tap = (image * shape.offset_groups + offset_group) * shape.taps();
    mask_index = (first_tap + tap) * shape.pixels() + pixel;
    offset_index = (first_tap + tap) * 2 * shape.pixels() + pixel;
    mask = shape.has_mask ? static_cast<T>(masks[mask_index]) : T(1);
    const int64_t top = pixel / shape.out_width * shape.stride[0] - shape.padding[0];
    const int64_t left = pixel % shape.out_width * shape.stride[1] - shape.padding[1];
    const T y = top + tap / shape.kernel[1] * shape.dilation[0] + static_cast<T>(offsets[offset_index]);
    const T x =
        left + tap % shape.kernel[1] * shape.dilation[1] + static_cast<T>(offsets[offset_index + shape.pixels()]);
    // Beyond a pixel outside the input is zero, as is a position that is not a number.
    const bool is_inside = y > -1 && y < shape.height && x > -1 && x < shape.width;
    const int64_t y0 = is_inside ? static_cast<int64_t>(std::floor(y)) : 0;
    const int64_t x0 = is_inside ? static_cast<int64_t>(std::floor(x)) : 0;
    const T down = y - y0, right = x - x0;
    for (int k = 0; k < 4; ++k) {
      const int64_t row_of_k = y0 + k / 2, column_of_k = x0 + k % 2;
      const bool exists = is_inside && row_of_k >= 0 && row_of_k < shape.height && column_of_k >= 0 &&
          column_of_k < shape.width;
      neighbor[k] = exists ? (image * shape.height + row_of_k) * shape.width + column_of_k : -1;
      const T vertical = k / 2 ? down : 1 - down, horizontal = k % 2 ? right : 1 - right;
      weight[k] = exists ? vertical * horizontal : T(0);
      by_y[k] = exists ? (k / 2 ? horizontal : -horizontal) : T(0);
      by_x[k] = exists ? (k % 2 ? vertical : -vertical) : T(0);
    }
  }
};

inline Shape check_shape(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(
      input.dim() == 4 && weight.dim() == 4 && offset.dim() == 4,
      "input, offset and weight must have 4 dimensions, got ", input.sizes(), ", ", offset.sizes(), " and ",
      weight.sizes());
  TORCH_CHECK_VALUE(
      stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "stride, padding and dilation must be (vertical, horizontal), got ", stride, ", ", padding, " and ", dilation);
  Shape shape;
  shape.images = input.size(0);
  shape.channels = input.size(1);
  shape.height = input.size(2);
  shape.width = input.size(3);
  shape.out_channels = weight.size(0);
  shape.has_mask = mask.has_value();
  int64_t out_size[2];
  for (int axis = 0; axis < 2; ++axis) {
    shape.kernel[axis] = weight.size(2 + axis);
    shape.stride[axis] = stride[axis];
    shape.padding[axis] = padding[axis];
    shape.dilation[axis] = dilation[axis];
    TORCH_CHECK_VALUE(
        shape.kernel[axis] > 0 && stride[axis] > 0 && dilation[axis] > 0 && padding[axis] >= 0,
        "kernel, stride and dilation must be positive and padding not negative, got ", weight.sizes().slice(2), ", ",
        stride, ", ", dilation, " and ", padding);
    const int64_t room = input.size(2 + axis) + 2 * padding[axis] - dilation[axis] * (shape.kernel[axis] - 1) - 1;
    TORCH_CHECK_VALUE(
        room >= 0 && input.size(2 + axis) > 0, "an input of ", input.sizes(), " with padding ", padding,
        " is too small for a kernel of ", weight.sizes().slice(2), " with dilation ", dilation);
    out_size[axis] = room / stride[axis] + 1;
  }
  shape.out_height = out_size[0];
  shape.out_width = out_size[1];
  TORCH_CHECK_VALUE(
      shape.channels > 0 && weight.size(1) > 0 && shape.out_channels > 0 && shape.channels % weight.size(1) == 0 &&
          shape.out_channels % (shape.channels / weight.size(1)) == 0,
      "the channels of input ", input.sizes(), " and weight ", weight.sizes(), " do not divide into groups");
  shape.groups = shape.channels / weight.size(1);
  const int64_t per_group = 2 * shape.taps();
  TORCH_CHECK_VALUE(
      offset.size(1) > 0 && offset.size(1) % per_group == 0 && shape.channels % (offset.size(1) / per_group) == 0,
      "offset must have 2 * ", shape.taps(), " channels for each group of the ", shape.channels, " input channels, got ",
      offset.size(1));
  shape.offset_groups = offset.size(1) / per_group;
  const auto check_sizes = [](const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, ", got ", tensor.sizes());
  };
  check_sizes("offset", offset, {shape.images, offset.size(1), shape.out_height, shape.out_width});
  if (mask) check_sizes("mask", *mask, {shape.images, offset.size(1) / 2, shape.out_height, shape.out_width});
  if (bias) check_sizes("bias", *bias, {shape.out_channels});
  for (const at::Tensor& other : {offset, weight, mask.value_or(input), bias.value_or(input)})
    TORCH_CHECK_VALUE(
        input.is_floating_point() && other.device() == input.device() && other.scalar_type() == input.scalar_type(),
        "input, offset, weight, bias and mask must have one floating type and device, got ", input.scalar_type(),
        " on ", input.device(), " and ", other.scalar_type(), " on ", other.device());
  return shape;
}

// (N, C, H, W) -> (N * H * W, C), contiguous
inline at::Tensor to_rows(const at::Tensor& images) {
  return images.permute({0, 2, 3, 1}).contiguous().view({-1, images.size(1)});
}

// (N * H * W, C) -> (N, C, H, W) in the memory format of `like`
inline at::Tensor from_rows(const at::Tensor& rows, int64_t images, int64_t height, int64_t width, const at::Tensor& like) {
  return rows.view({images, height, width, rows.size(1)})
      .permute({0, 3, 1, 2})
      .contiguous(like.suggest_memory_format());
}

// (C_out, C_in / groups, kernel, kernel) -> (C_out, columns of a group)
inline at::Tensor to_pointwise(const at::Tensor& weight) {
  return weight.permute({0, 2, 3, 1}).reshape({weight.size(0), -1});
}

// A pointwise convolution of rows (R, columns) to (R, C_out). On CUDA without groups it is a matrix product; else rows
// are the pixels of one image in channels-last order, for which convolutions beat matrix products.
struct Pointwise {
  at::Tensor weight;
  int64_t groups;

  static at::Tensor as_image(const at::Tensor& rows) {
    return rows.view({1, 1, rows.size(0), rows.size(1)}).permute({0, 3, 1, 2});
  }
  at::Tensor kernel() const {
    return weight.view({weight.size(0), weight.size(1), 1, 1});
  }
  bool is_product(const at::Tensor& rows) const {
    return rows.is_cuda() && groups == 1;
  }

  at::Tensor forward(const at::Tensor& rows, const std::optional<at::Tensor>& bias) const {
    if (is_product(rows)) return bias ? at::addmm(*bias, rows, weight.t()) : at::mm(rows, weight.t());
    return to_rows(at::convolution(as_image(rows), kernel(), bias, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, groups));
  }

  // Gradients of rows and weight; which of them is computed says `wanted`.
  std::tuple<at::Tensor, at::Tensor> backward(
      const at::Tensor& grad, const at::Tensor& rows, std::array<bool, 2> wanted) const {
    if (is_product(rows))
      return {
          wanted[0] ? at::mm(grad, weight) : at::Tensor(), wanted[1] ? at::mm(grad.t(), rows) : at::Tensor()};
    const auto [by_rows, by_kernel, _] = at::convolution_backward(
        as_image(grad), as_image(rows), kernel(), std::nullopt, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, groups,
        {wanted[0], wanted[1], false});
    return {wanted[0] ? to_rows(by_rows) : at::Tensor(), wanted[1] ? by_kernel.view(weight.sizes()) : at::Tensor()};
  }
};

inline int64_t rows_of_band(const Shape& shape, const at::Tensor& input, int64_t band_bytes) {
  const int64_t row_bytes = shape.channels * shape.taps() * input.element_size();
  return std::clamp<int64_t>(band_bytes / row_bytes, 1, std::max<int64_t>(1, shape.images * shape.pixels()));
}

// Kernels brings kBandBytes and
//   sample(shape, input rows, offset, mask, first row, number of rows, columns)
//   sample_backward(shape, input rows, offset, mask, first row, number of rows, gradient of the columns,
//                   gradients of input rows (added to, if defined), offset and mask)
template <typename Kernels>
at::Tensor forward(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Shape shape = check_shape(input, offset, weight, bias, mask, stride, padding, dilation);
  const int64_t num_rows = shape.images * shape.pixels();
  const at::Tensor out = at::empty({num_rows, shape.out_channels}, input.options());
  const at::Tensor input_rows = to_rows(input);
  const Pointwise pointwise{to_pointwise(weight), shape.groups};
  const at::Tensor offset_ = offset.contiguous(), mask_ = mask ? mask->contiguous() : at::Tensor();
  const int64_t band = rows_of_band(shape, input, Kernels::kBandBytes);
  const at::Tensor columns = at::empty({band, shape.channels * shape.taps()}, input.options());
  for (int64_t first = 0; first < num_rows; first += band) {
    const int64_t count = std::min(band, num_rows - first);
    const at::Tensor some = columns.narrow(0, 0, count);
    Kernels::sample(shape, input_rows, offset_, mask_, first, count, some);
    out.narrow(0, first, count).copy_(pointwise.forward(some, bias));
  }
  return from_rows(out, shape.images, shape.out_height, shape.out_width, input);
}

// Gradients of input, offset, weight and mask; an empty tensor for each that is not wanted.
template <typename Kernels>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    std::array<bool, 4> wanted) {
  const Shape shape = check_shape(input, offset, weight, std::nullopt, mask, stride, padding, dilation);
  const auto [wants_input, wants_offset, wants_weight, wants_mask] = wanted;
  const bool wants_samples = wants_input || wants_offset || wants_mask;
  const auto exact = input.options().dtype(at::toOpMathType(input.scalar_type()));
  const int64_t num_rows = shape.images * shape.pixels();
  const at::Tensor offset_ = offset.contiguous(), mask_ = mask ? mask->contiguous() : at::Tensor();
  const at::Tensor input_rows = to_rows(input), grad_rows = to_rows(grad);
  const Pointwise pointwise{to_pointwise(weight), shape.groups};
  const at::Tensor grad_input_rows = wants_input ? at::zeros(input_rows.sizes(), exact) : at::Tensor();
  const at::Tensor grad_offset = at::zeros_like(offset_);
  const at::Tensor grad_mask = mask ? at::zeros_like(mask_) : at::empty({0}, input.options());
  const at::Tensor grad_pointwise = at::zeros(pointwise.weight.sizes(), exact);
  const int64_t band = rows_of_band(shape, input, Kernels::kBandBytes);
  const at::Tensor columns = at::empty({band, shape.channels * shape.taps()}, input.options());
  for (int64_t first = 0; first < num_rows; first += band) {
    const int64_t count = std::min(band, num_rows - first);
    const at::Tensor some = columns.narrow(0, 0, count);
    if (wants_weight) Kernels::sample(shape, input_rows, offset_, mask_, first, count, some);
    const auto [grad_columns, grad_weight] =
        pointwise.backward(grad_rows.narrow(0, first, count), some, {wants_samples, wants_weight});
    if (wants_weight) grad_pointwise.add_(grad_weight);
    if (wants_samples)
      Kernels::sample_backward(
          shape, input_rows, offset_, mask_, first, count, grad_columns, grad_input_rows, grad_offset, grad_mask);
  }
  const auto nothing = [&] { return at::empty({0}, input.options()); };
  const at::Tensor grad_weight =
      grad_pointwise.view({weight.size(0), weight.size(2), weight.size(3), weight.size(1)}).permute({0, 3, 1, 2});
  return {
      wants_input ? from_rows(grad_input_rows, shape.images, shape.height, shape.width, input).to(input.scalar_type())
                  : nothing(),
      wants_offset ? grad_offset : nothing(),
      wants_weight ? grad_weight.to(input.scalar_type()).contiguous() : nothing(),
      wants_mask ? grad_mask : nothing()};
}

} // namespace atss::deform_conv
