#include "../deform_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include "common.cuh"

namespace atss::deform_conv {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int64_t kBlocks = 1 << 16;  // more rows are looped over
constexpr int64_t kVectorBytes = 16;

// Several neighbouring channels, moved by one instruction.
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T values[kSize];
};

template <typename T, int kSize>
__device__ Vector<T, kSize> load(const T* address) {
  return *reinterpret_cast<const Vector<T, kSize>*>(address);
}

// Adds to neighbouring numbers; in one instruction where the GPU can (sm_90).
template <int kSize>
__device__ void add_atomically(float* address, const float (&values)[kSize]) {
#if __CUDA_ARCH__ >= 900
  constexpr int kTogether = kSize % 4 == 0 ? 4 : 1;
#else
  constexpr int kTogether = 1;
#endif
  for (int i = 0; i < kSize; i += kTogether) {
    if constexpr (kTogether == 4)
      atomicAdd(
          reinterpret_cast<float4*>(address + i), make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    else
      atomicAdd(address + i, values[i]);
  }
}

template <int kSize>
__device__ void add_atomically(double* address, const double (&values)[kSize]) {
  for (int i = 0; i < kSize; ++i) atomicAdd(address + i, values[i]);
}

template <typename T>
struct Band {
  Shape shape;
  const T *input, *offsets, *masks;
  int64_t first, count;
};

// A warp serves one row and offset group at a time: its lanes first locate one tap each, then share the channels of
// each tap. Calls function(sample, row, tap, first channel of the offset group, lane) with whole warps.
template <typename T, typename Function>
__device__ void for_each_sample(const Band<T>& band, const Function& function) {
  using Exact = at::opmath_type<T>;
  __shared__ Sample<Exact> all_samples[kWarpsPerBlock][kWarp];
  Sample<Exact>* const samples = all_samples[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t taps = band.shape.taps(), num_items = band.count * band.shape.offset_groups;
  const int64_t num_warps = int64_t{gridDim.x} * kWarpsPerBlock;
  for (int64_t item = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp; item < num_items; item += num_warps) {
    const int64_t row = item / band.shape.offset_groups, offset_group = item % band.shape.offset_groups;
    for (int64_t first_tap = 0; first_tap < taps; first_tap += kWarp) {
      const int num_taps = static_cast<int>(min(int64_t{kWarp}, taps - first_tap));
      if (lane < num_taps)
        samples[lane] = Sample<Exact>(
            band.shape, band.offsets, band.masks, band.first + row, offset_group, first_tap + lane);
      __syncwarp();
      for (int tap = 0; tap < num_taps; ++tap)
        function(samples[tap], row, first_tap + tap, offset_group * band.shape.offset_channels(), lane);
      __syncwarp();
    }
  }
}

template <typename T, int kSize>
__global__ void sample_columns(Band<T> band, T* columns) {
  using Exact = at::opmath_type<T>;
  const Shape& shape = band.shape;
  for_each_sample(band, [&](const Sample<Exact>& sample, int64_t row, int64_t tap, int64_t first_channel, int lane) {
    for (int64_t c = lane * kSize; c < shape.offset_channels(); c += kWarp * kSize) {
      const int64_t channel = first_channel + c;
      Exact sums[kSize] = {};
      for (int k = 0; k < 4; ++k) {
        if (sample.neighbor[k] < 0) continue;
        const auto values = load<T, kSize>(band.input + sample.neighbor[k] * shape.channels + channel);
        const Exact weight = sample.mask * sample.weight[k];
        for (int i = 0; i < kSize; ++i) sums[i] += weight * static_cast<Exact>(values.values[i]);
      }
      Vector<T, kSize> out;
      for (int i = 0; i < kSize; ++i) out.values[i] = static_cast<T>(sums[i]);
      *reinterpret_cast<Vector<T, kSize>*>(
          columns + row * shape.channels * shape.taps() + shape.column(channel, tap)) = out;
    }
  });
}

template <typename T, int kSize>
__global__ void differentiate(
    Band<T> band, const T* grad_columns, at::opmath_type<T>* grad_input, T* grad_offset, T* grad_mask) {
  using Exact = at::opmath_type<T>;
  const Shape& shape = band.shape;
  for_each_sample(band, [&](const Sample<Exact>& sample, int64_t row, int64_t tap, int64_t first_channel, int lane) {
    Exact shares[4] = {};  // of the neighbours in the gradient of the sample
    for (int64_t c = lane * kSize; c < shape.offset_channels(); c += kWarp * kSize) {
      const int64_t channel = first_channel + c;
      const auto grads =
          load<T, kSize>(grad_columns + row * shape.channels * shape.taps() + shape.column(channel, tap));
      for (int k = 0; k < 4; ++k) {
        if (sample.neighbor[k] < 0) continue;
        const int64_t position = sample.neighbor[k] * shape.channels + channel;
        const auto values = load<T, kSize>(band.input + position);
        const Exact weight = sample.mask * sample.weight[k];
        Exact grads_of_neighbor[kSize];
        for (int i = 0; i < kSize; ++i) {
          const Exact grad = static_cast<Exact>(grads.values[i]);
          shares[k] += grad * static_cast<Exact>(values.values[i]);
          grads_of_neighbor[i] = weight * grad;
        }
        if (grad_input) add_atomically(grad_input + position, grads_of_neighbor);
      }
    }
    Exact by_mask = 0, by_y = 0, by_x = 0;
    for (int k = 0; k < 4; ++k) {
      const Exact share = sum_over_warp(shares[k]);
      by_mask += share * sample.weight[k];
      by_y += share * sample.by_y[k];
      by_x += share * sample.by_x[k];
    }
    if (lane != 0) return;
    grad_offset[sample.offset_index] = static_cast<T>(sample.mask * by_y);
    grad_offset[sample.offset_index + shape.pixels()] = static_cast<T>(sample.mask * by_x);
    if (shape.has_mask) grad_mask[sample.mask_index] = static_cast<T>(by_mask);
  });
}

struct CudaKernels {
  static constexpr int64_t kBandBytes = 256 << 20;

  // Calls function(band, grid, std::integral_constant of the channels that move together) for the tensors' type.
  template <typename Function>
  static void launch(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      int64_t count, const at::Tensor& columns, const Function& function) {
    const auto is_aligned = [](const at::Tensor& tensor) {
      return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kVectorBytes == 0;
    };
    const int64_t num_blocks = std::min(kBlocks, at::ceil_div(count * shape.offset_groups, int64_t{kWarpsPerBlock}));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "deform_conv2d", [&] {
      constexpr int kSize = kVectorBytes / sizeof(scalar_t);
      const Band<scalar_t> band{
          shape,
          input.const_data_ptr<scalar_t>(),
          offset.const_data_ptr<scalar_t>(),
          shape.has_mask ? mask.const_data_ptr<scalar_t>() : nullptr,
          first,
          count};
      if (shape.group_channels() % kSize == 0 && shape.offset_channels() % kSize == 0 && is_aligned(input) &&
          is_aligned(columns))
        function(band, num_blocks, std::integral_constant<int, kSize>());
      else
        function(band, num_blocks, std::integral_constant<int, 1>());
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void sample(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      int64_t count, const at::Tensor& columns) {
    launch(shape, input, offset, mask, first, count, columns, [&](const auto& band, int64_t num_blocks, auto size) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(band.input)>>;
      sample_columns<T, size()><<<num_blocks, kWarpsPerBlock * kWarp, 0, at::cuda::getCurrentCUDAStream()>>>(
          band, columns.mutable_data_ptr<T>());
    });
  }

  static void sample_backward(
      const Shape& shape, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t first,
      int64_t count, const at::Tensor& grad_columns, const at::Tensor& grad_input, const at::Tensor& grad_offset,
      const at::Tensor& grad_mask) {
    launch(shape, input, offset, mask, first, count, grad_columns, [&](const auto& band, int64_t num_blocks, auto size) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(band.input)>>;
      differentiate<T, size()><<<num_blocks, kWarpsPerBlock * kWarp, 0, at::cuda::getCurrentCUDAStream()>>>(
          band, grad_columns.const_data_ptr<T>(),
          grad_input.defined() ? grad_input.mutable_data_ptr<at::opmath_type<T>>() : nullptr,
          grad_offset.mutable_data_ptr<T>(), grad_mask.mutable_data_ptr<T>());
    });
  }
};

at::Tensor deform_conv2d(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const c10::cuda::OptionalCUDAGuard guard(input.device());
  return forward<CudaKernels>(input, offset, weight, bias, mask, stride, padding, dilation);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
    const std::optional<at::Tensor>& mask, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    std::array<bool, 4> wanted) {
  // Samples add to the gradient of the input in any order.
  if (wanted[0]) at::globalContext().alertNotDeterministic("atss::deform_conv2d_backward on CUDA");
  const c10::cuda::OptionalCUDAGuard guard(input.device());
  return backward<CudaKernels>(grad, input, offset, weight, mask, stride, padding, dilation, wanted);
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CUDA, m) {
  m.impl("deform_conv2d", deform_conv2d);
  m.impl("deform_conv2d_backward", deform_conv2d_backward);
}

} // namespace atss::deform_conv
