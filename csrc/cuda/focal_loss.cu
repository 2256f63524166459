// Sigmoid focal loss: one pass over the logits forward and one backward.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include "../checks.h"
#include "../focal_math.h"
#include "common.cuh"

namespace atss {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 2048;  // enough to fill any GPU; more elements are looped over

struct CudaMath {
  static __device__ ATSS_FORCE_INLINE float exp(float x) {
    return ::expf(x);
  }
  static __device__ ATSS_FORCE_INLINE double exp(double x) {
    return ::exp(x);
  }
  static __device__ ATSS_FORCE_INLINE float log1p(float e) {
    return ::log1pf(e);
  }
  static __device__ ATSS_FORCE_INLINE double log1p(double e) {
    return ::log1p(e);
  }
};

// The weight of a logit: 1 - alpha for background, -alpha for the class of an object, 0 for ignored; the sign says
// which way the logit counts.
template <typename T>
__device__ T weight_of(int64_t label, int64_t label_of_logit, T alpha) {
  return label < 0 ? T(0) : label == label_of_logit ? -alpha : 1 - alpha;
}

template <typename T, typename Index, typename Function>
__device__ void for_each_logit(const int64_t* labels, Index count, Index num_classes, T alpha, const Function& function) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const Index row = i / num_classes;
    function(i, weight_of(labels[row], static_cast<int64_t>(i - row * num_classes) + 1, alpha));
  }
}

template <typename Logit, typename T, typename Index>
__global__ void sum_losses(
    const Logit* logits, const int64_t* labels, Index count, Index num_classes, T gamma, T alpha, T* sums) {
  __shared__ T partial[kThreads / kWarp];
  T sum = 0;
  for_each_logit(labels, count, num_classes, alpha, [&](Index i, T weight) {
    const T logit = static_cast<T>(logits[i]);
    const T loss = FocalTerm<T, CudaMath>(weight < 0 ? -logit : logit, gamma, gamma == 2).loss;
    sum += weight == 0 ? T(0) : (weight < 0 ? -weight : weight) * loss;
  });
  sum = sum_over_block(sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <typename Logit, typename T, typename Index>
__global__ void write_gradients(
    const Logit* logits, const int64_t* labels, Index count, Index num_classes, T gamma, T alpha, const T* factor,
    Logit* out) {
  for_each_logit(labels, count, num_classes, alpha, [&](Index i, T weight) {
    const T logit = static_cast<T>(logits[i]);
    const T slope = FocalTerm<T, CudaMath>(weight < 0 ? -logit : logit, gamma, gamma == 2).gradient;
    out[i] = static_cast<Logit>(weight == 0 ? T(0) : *factor * weight * slope);
  });
}

// Calls function with an index type that can hold twice the count, for the grid's stride: 32 bits divide faster.
template <typename Function>
void with_index_type(int64_t count, const Function& function) {
  if (count < (int64_t{1} << 31))
    function(uint32_t{});
  else
    function(int64_t{});
}

at::Tensor sigmoid_focal_loss(const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  check_focal(logits, labels, gamma, alpha);
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  const auto exact = logits.options().dtype(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const int64_t count = logits.numel();
  if (count == 0) return at::zeros({}, exact);
  const at::Tensor logits_ = logits.contiguous(), labels_ = labels.contiguous();
  // One sum per block, added up in a fixed order.
  const at::Tensor sums = at::empty({std::min(kBlocks, at::ceil_div(count, int64_t{kThreads}))}, exact);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "sigmoid_focal_loss", [&] {
    using T = at::opmath_type<scalar_t>;
    with_index_type(count, [&](auto index) {
      using Index = decltype(index);
      sum_losses<scalar_t, T, Index><<<sums.numel(), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
          logits_.const_data_ptr<scalar_t>(), labels_.const_data_ptr<int64_t>(), static_cast<Index>(count),
          static_cast<Index>(logits.size(1)), static_cast<T>(gamma), static_cast<T>(alpha), sums.mutable_data_ptr<T>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return sums.sum();
}

at::Tensor sigmoid_focal_loss_backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  check_focal(logits, labels, gamma, alpha);
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  const int64_t count = logits.numel();
  const at::Tensor logits_ = logits.contiguous(), labels_ = labels.contiguous();
  const at::Tensor out = at::empty_like(logits_);
  if (count == 0) return out;
  const int64_t num_blocks = std::min(kBlocks, at::ceil_div(count, int64_t{kThreads}));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "sigmoid_focal_loss_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    const at::Tensor factor = grad.to(logits.device(), c10::CppTypeToScalarType<T>::value);
    with_index_type(count, [&](auto index) {
      using Index = decltype(index);
      write_gradients<scalar_t, T, Index><<<num_blocks, kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
          logits_.const_data_ptr<scalar_t>(), labels_.const_data_ptr<int64_t>(), static_cast<Index>(count),
          static_cast<Index>(logits.size(1)), static_cast<T>(gamma), static_cast<T>(alpha),
          factor.const_data_ptr<T>(), out.mutable_data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CUDA, m) {
  m.impl("sigmoid_focal_loss", sigmoid_focal_loss);
  m.impl("sigmoid_focal_loss_backward", sigmoid_focal_loss_backward);
}

} // namespace atss
