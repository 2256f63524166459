#include "../deform_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "multiversion.h"

ATSS_ALLOW_FMA

namespace atss::deform_conv {
namespace {

// Neighbouring channels of one group and one offset group.
struct Run {
  int64_t channel, length, offset_group;
};

// All channels from `first` up to `last` as runs.
std::vector<Run> runs_of_channels(const Shape& shape, int64_t first, int64_t last) {
  std::vector<Run> runs;
  while (first < last) {
    const int64_t end_of_group = (first / shape.group_channels() + 1) * shape.group_channels();
    const int64_t end_of_offsets = (first / shape.offset_channels() + 1) * shape.offset_channels();
    const int64_t end = std::min({end_of_group, end_of_offsets, last});
    runs.push_back({first, end - first, first / shape.offset_channels()});
    first = end;
  }
  return runs;
}

// Pointers into one band; rows count from its start.
template <typename T>
struct Band {
  Shape shape;
  const T *input, *offsets, *masks;
  int64_t first;
  const T* nothing;  // zeros, what neighbours outside the input hold

  Sample<T> sample(int64_t row, int64_t offset_group, int64_t tap) const {
    return Sample<T>(shape, offsets, masks, first + row, offset_group, tap);
  }
  const T* neighbor(const Sample<T>& sample, int k, int64_t channel) const {
    return sample.neighbor[k] < 0 ? nothing : input + sample.neighbor[k] * shape.channels + channel;
  }
  int64_t column(int64_t row, int64_t channel, int64_t tap) const {
    return row * shape.channels * shape.taps() + shape.column(channel, tap);
  }
};

// Calls function(sample, channel, length, tap) for all taps and runs of a row; the runs of one offset group share a
// sample. length is a constant in the compiler's eyes if kLength is not 0, for runs that are shorter than vectors.
template <int kLength, typename T, typename Function>
ATSS_FORCE_INLINE void for_each_sample(
    const Band<T>& band, const std::vector<Run>& runs, int64_t row, const Function& function) {
  for (int64_t tap = 0; tap < band.shape.taps(); ++tap) {
    int64_t offset_group = runs.front().offset_group;
    Sample<T> sample = band.sample(row, offset_group, tap);
    for (const Run& run : runs) {
      if (run.offset_group != offset_group) {
        offset_group = run.offset_group;
        sample = band.sample(row, offset_group, tap);
      }
      function(sample, run.channel, kLength ? kLength : run.length, tap);
    }
  }
}

// Each of these treats rows from `begin` to before `end` of a band.
struct SampleRows {
  template <int kLength, typename T>
  static ATSS_FORCE_INLINE void run(
      const Band<T>& band, const std::vector<Run>& runs, int64_t begin, int64_t end, T* columns) {
    for (int64_t row = begin; row < end; ++row)
      for_each_sample<kLength>(band, runs, row, [&](const Sample<T>& sample, int64_t channel, int64_t length, int64_t tap)
                                                    ATSS_INLINE_LAMBDA {
        const T *v0 = band.neighbor(sample, 0, channel), *v1 = band.neighbor(sample, 1, channel);
        const T *v2 = band.neighbor(sample, 2, channel), *v3 = band.neighbor(sample, 3, channel);
        const T w0 = sample.mask * sample.weight[0], w1 = sample.mask * sample.weight[1];
        const T w2 = sample.mask * sample.weight[2], w3 = sample.mask * sample.weight[3];
        T* const out = columns + band.column(row, channel, tap);
#pragma omp simd
        for (int64_t c = 0; c < length; ++c) out[c] = w0 * v0[c] + w1 * v1[c] + w2 * v2[c] + w3 * v3[c];
      });
  }
};

// Gradients of offsets and mask: both are sums of the neighbours' shares in the gradient of the sample.
struct DifferentiateRows {
  template <int kLength, typename T>
  static ATSS_FORCE_INLINE void run(
      const Band<T>& band, const std::vector<Run>& runs, int64_t begin, int64_t end, const T* grad_columns,
      T* grad_offset, T* grad_mask) {
    for (int64_t row = begin; row < end; ++row)
      for_each_sample<kLength>(band, runs, row, [&](const Sample<T>& sample, int64_t channel, int64_t length, int64_t tap)
                                                    ATSS_INLINE_LAMBDA {
        const T *v0 = band.neighbor(sample, 0, channel), *v1 = band.neighbor(sample, 1, channel);
        const T *v2 = band.neighbor(sample, 2, channel), *v3 = band.neighbor(sample, 3, channel);
        const T* const grad = grad_columns + band.column(row, channel, tap);
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t c = 0; c < length; ++c) {
          s0 += grad[c] * v0[c];
          s1 += grad[c] * v1[c];
          s2 += grad[c] * v2[c];
          s3 += grad[c] * v3[c];
        }
        const T share[] = {s0, s1, s2, s3};
        T by_mask = 0, by_y = 0, by_x = 0;
        for (int k = 0; k < 4; ++k) {
          by_mask += share[k] * sample.weight[k];
          by_y += share[k] * sample.by_y[k];
          by_x += share[k] * sample.by_x[k];
        }
        grad_offset[sample.offset_index] += sample.mask * by_y;
        grad_offset[sample.offset_index + band.shape.pixels()] += sample.mask * by_x;
        if (band.shape.has_mask) grad_mask[sample.mask_index] += by_mask;
      });
  }
};

struct ScatterRows {
  template <int kLength, typename T>
  static ATSS_FORCE_INLINE void run(
      const Band<T>& band, const std::vector<Run>& runs, int64_t begin, int64_t end, const T* grad_columns,
      T* grad_input) {
    for (int64_t row = begin; row < end; ++row)
      for_each_sample<kLength>(band, runs, row, [&](const Sample<T>& sample, int64_t channel, int64_t length, int64_t tap)
                                                    ATSS_INLINE_LAMBDA {
        const T* const grad = grad_columns + band.column(row, channel, tap);
        for (int k = 0; k < 4; ++k) {
          if (sample.neighbor[k] < 0) continue;
          T* const out = grad_input + sample.neighbor[k] * band.shape.channels + channel;
          const T weight = sample.mask * sample.weight[k];
#pragma omp simd
          for (int64_t c = 0; c < length; ++c) out[c] += weight * grad[c];
        }
      });
  }
};

template <typename Rows, typename T, typename... Arguments>
ATSS_FORCE_INLINE void run_any_length(const Band<T>& band, const std::vector<Run>& runs, Arguments... arguments) {
  const auto have_length = [&](int64_t length) {
    return std::all_of(runs.begin(), runs.end(), [=](const Run& run) { return run.length == length; });
  };
  if (have_length(8))
    Rows::template run<8>(band, runs, arguments...);
  else if (have_length(16))
    Rows::template run<16>(band, runs, arguments...);
  else
    Rows::template run<0>(band, runs, arguments...);
}

// In float32 compiled for several instruction sets, which a template cannot be.
using Runs = std::vector<Run>;

ATSS_MULTIVERSION
void sample_rows(const Band<float>& band, const Runs& runs, int64_t begin, int64_t end, float* columns) {
  run_any_length<SampleRows>(band, runs, begin, end, columns);
}

void sample_rows(const Band<double>& band, const Runs& runs, int64_t begin, int64_t end, double* columns) {
  run_any_length<SampleRows>(band, runs, begin, end, columns);
}

ATSS_MULTIVERSION
void differentiate_rows(
    const Band<float>& band, const Runs& runs, int64_t begin, int64_t end, const float* grad_columns,
    float* grad_offset, float* grad_mask) {
  run_any_length<DifferentiateRows>(band, runs, begin, end, grad_columns, grad_offset, grad_mask);
}

void differentiate_rows(
    const Band<double>& band, const Runs& runs, int64_t begin, int64_t end, const double* grad_columns,
    double* grad_offset, double* grad_mask) {
  run_any_length<DifferentiateRows>(band, runs, begin, end, grad_columns, grad_offset, grad_mask);
}

ATSS_MULTIVERSION
void scatter_rows(
    const Band<float>& band, const Runs& runs, int64_t begin, int64_t end, const float* grad_columns,
    float* grad_input) {
  run_any_length<ScatterRows>(band, runs, begin, end, grad_columns, grad_input);
}

void scatter_rows(
    const Band<double>& band, const Runs& runs, int64_t begin, int64_t end, const double* grad_columns,
    double* grad_input) {
  run_any_length<ScatterRows>(band, runs, begin, end, grad_columns, grad_input);
}

struct CpuKernels {
  static constexpr int64_t kBandBytes = 16 << 20;

  template <typename T>
  static Band<T> band(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      const std::vector<T>& nothing) {
    return {
        shape, input.const_data_ptr<T>(), offset.const_data_ptr<T>(),
        shape.has_mask ? mask.const_data_ptr<T>() : nullptr, first, nothing.data()};
  }

  static void sample(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      int64_t count, const at::Tensor& columns) {
    const auto runs = runs_of_channels(shape, 0, shape.channels);
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_conv2d", [&] {
      const std::vector<scalar_t> nothing(shape.channels);
      const auto band_ = band(shape, input, offset, mask, first, nothing);
      scalar_t* const out = columns.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) { sample_rows(band_, runs, begin, end, out); });
    });
  }

  // Rows are shared out among threads for the gradients of offsets and masks, channels for that of the input: no two
  // threads write to one location, and all sums are in the same order whatever the number of threads.
  static void sample_backward(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      int64_t count, const at::Tensor& grad_columns, const at::Tensor& grad_input, const at::Tensor& grad_offset,
      const at::Tensor& grad_mask) {
    const auto runs = runs_of_channels(shape, 0, shape.channels);
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_conv2d_backward", [&] {
      const std::vector<scalar_t> nothing(shape.channels);
      const auto band_ = band(shape, input, offset, mask, first, nothing);
      const auto* grad = grad_columns.const_data_ptr<scalar_t>();
      auto* const by_offset = grad_offset.mutable_data_ptr<scalar_t>();
      auto* const by_mask = grad_mask.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
        differentiate_rows(band_, runs, begin, end, grad, by_offset, by_mask);
      });
      if (!grad_input.defined()) return;
      auto* const by_input = grad_input.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, shape.channels, 16, [&](int64_t begin, int64_t end) {
        scatter_rows(band_, runs_of_channels(shape, begin, end), 0, count, grad, by_input);
      });
    });
  }
};

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

std::optional<at::Tensor> to_float(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::make_optional(tensor->to(at::kFloat)) : std::nullopt;
}

// float16 and bfloat16 are computed in float32.
at::Tensor deform_conv2d(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  if (!is_half(input)) return forward<CpuKernels>(input, offset, weight, bias, mask, stride, padding, dilation);
  check_shape(input, offset, weight, bias, mask, stride, padding, dilation);
  return forward<CpuKernels>(
             input.to(at::kFloat), offset.to(at::kFloat), weight.to(at::kFloat), to_float(bias), to_float(mask), stride,
             padding, dilation)
      .to(input.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    std::array<bool, 4> wanted) {
  if (!is_half(input)) return backward<CpuKernels>(grad, input, offset, weight, mask, stride, padding, dilation, wanted);
  const auto [by_input, by_offset, by_weight, by_mask] = backward<CpuKernels>(
      grad.to(at::kFloat), input.to(at::kFloat), offset.to(at::kFloat), weight.to(at::kFloat), to_float(mask), stride,
      padding, dilation, wanted);
  const auto type = input.scalar_type();
  return {by_input.to(type), by_offset.to(type), by_weight.to(type), by_mask.to(type)};
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CPU, m) {
  m.impl("deform_conv2d", deform_conv2d);
  m.impl("deform_conv2d_backward", deform_conv2d_backward);
}

} // namespace atss::deform_conv
