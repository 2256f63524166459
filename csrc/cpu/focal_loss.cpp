// Sigmoid focal loss: one pass over the logits forward and one backward, nothing of their size in between.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "multiversion.h"

ATSS_ALLOW_FMA

#include "../focal_math.h"

namespace atss {
namespace {

// Logits are treated in blocks of whole rows of about this many numbers, so that the arithmetic runs over the full
// width of the vectors however few classes there are.
constexpr int64_t kBlock = 1024;
constexpr int64_t kBlocksPerTask = 16;

// Within 2 units in the last place of the functions in <cmath>, and free of branches.
struct FloatMath {
  // exp(x) for x <= 0 (Cody and Waite: 2^n exp(r), |r| <= ln(2) / 2, with the series of exp up to r^7); 0 below -87.3,
  // where float32 loses precision.
  static ATSS_FORCE_INLINE float exp(float x) {
    const float clamped = x > -87.3f ? x : -87.3f;
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float n = (clamped * 1.44269504f + magic) - magic;
    const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float series = 1.f / 5040;
    series = series * r + 1.f / 720;
    series = series * r + 1.f / 120;
    series = series * r + 1.f / 24;
    series = series * r + 1.f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.f;
    series = series * r + 1.f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x > -87.3f ? series * power : x <= -87.3f ? 0.f : x;  // NaN stays
  }

  // log(1 + e) for e in [0, 1] as 2 artanh(e / (2 + e)).
  static ATSS_FORCE_INLINE float log1p(float e) {
    const float s = e / (2 + e), s2 = s * s;
    float series = 1.f / 15;
    series = series * s2 + 1.f / 13;
    series = series * s2 + 1.f / 11;
    series = series * s2 + 1.f / 9;
    series = series * s2 + 1.f / 7;
    series = series * s2 + 1.f / 5;
    series = series * s2 + 1.f / 3;
    series = series * s2 + 1.f;
    return 2 * s * series;
  }
};

struct DoubleMath {
  static double exp(double x) {
    return std::exp(x);
  }
  static double log1p(double e) {
    return std::log1p(e);
  }
};

// The weight of each logit of some rows: 1 - alpha for background, -alpha for the class of an object, 0 for ignored.
// The sign says which way the logit counts.
template <typename T>
void fill_weights(const int64_t* labels, int64_t rows, int64_t num_classes, double alpha, T* weights) {
  for (int64_t row = 0; row < rows; ++row, weights += num_classes) {
    std::fill_n(weights, num_classes, static_cast<T>(labels[row] < 0 ? 0 : 1 - alpha));
    if (labels[row] > 0 && labels[row] <= num_classes) weights[labels[row] - 1] = static_cast<T>(-alpha);
  }
}

template <bool is_gamma_2, typename T, typename Math>
ATSS_FORCE_INLINE T sum_losses(const T* logits, const T* weights, int64_t count, T gamma) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const T weight = weights[i], loss = FocalTerm<T, Math>(weight < 0 ? -logits[i] : logits[i], gamma, is_gamma_2).loss;
    // A weight of zero must not meet an infinite loss.
    sum += weight == 0 ? 0 : (weight < 0 ? -weight : weight) * loss;
  }
  return sum;
}

template <bool is_gamma_2, typename T, typename Math>
ATSS_FORCE_INLINE void write_gradients(const T* logits, const T* weights, int64_t count, T gamma, T factor, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T weight = weights[i];
    const T slope = FocalTerm<T, Math>(weight < 0 ? -logits[i] : logits[i], gamma, is_gamma_2).gradient;
    out[i] = weight == 0 ? 0 : factor * weight * slope;
  }
}

ATSS_MULTIVERSION
float sum_losses(const float* logits, const float* weights, int64_t count, float gamma) {
  return gamma == 2 ? sum_losses<true, float, FloatMath>(logits, weights, count, gamma)
                    : sum_losses<false, float, FloatMath>(logits, weights, count, gamma);
}

double sum_losses(const double* logits, const double* weights, int64_t count, double gamma) {
  return sum_losses<false, double, DoubleMath>(logits, weights, count, gamma);
}

ATSS_MULTIVERSION
void write_gradients(const float* logits, const float* weights, int64_t count, float gamma, float factor, float* out) {
  gamma == 2 ? write_gradients<true, float, FloatMath>(logits, weights, count, gamma, factor, out)
             : write_gradients<false, float, FloatMath>(logits, weights, count, gamma, factor, out);
}

void write_gradients(
    const double* logits, const double* weights, int64_t count, double gamma, double factor, double* out) {
  write_gradients<false, double, DoubleMath>(logits, weights, count, gamma, factor, out);
}

template <typename T, typename Out>
void write_gradients_as(const T* logits, const T* weights, int64_t count, T gamma, T factor, Out* out) {
  if constexpr (std::is_same_v<T, Out>) {
    write_gradients(logits, weights, count, gamma, factor, out);
  } else {
    std::vector<T> exact(count);
    write_gradients(logits, weights, count, gamma, factor, exact.data());
    std::copy(exact.begin(), exact.end(), out);
  }
}

// Calls function(block, logits, weights, start, count) for each block of whole rows, in parallel. logits are in T;
// start is the block's first position among all logits.
template <typename T, typename Logit, typename Function>
void for_each_block(
    const at::Tensor& logits, const at::Tensor& labels, double alpha, int64_t block_rows, const Function& function) {
  const int64_t num_rows = logits.size(0), num_classes = logits.size(1);
  const int64_t num_blocks = at::ceil_div(num_rows, block_rows);
  const Logit* const logit_data = logits.const_data_ptr<Logit>();
  const int64_t* const label_data = labels.const_data_ptr<int64_t>();
  at::parallel_for(0, num_blocks, kBlocksPerTask, [&](int64_t first, int64_t last) {
    std::vector<T> weights(block_rows * num_classes), converted;
    for (int64_t block = first; block < last; ++block) {
      const int64_t row = block * block_rows, rows = std::min(block_rows, num_rows - row);
      const int64_t start = row * num_classes, count = rows * num_classes;
      fill_weights(label_data + row, rows, num_classes, alpha, weights.data());
      if constexpr (std::is_same_v<T, Logit>) {
        function(block, logit_data + start, weights.data(), start, count);
      } else {
        converted.assign(logit_data + start, logit_data + start + count);
        function(block, converted.data(), weights.data(), start, count);
      }
    }
  });
}

int64_t rows_of_block(int64_t num_classes) {
  return std::max<int64_t>(1, kBlock / num_classes);
}

at::Tensor sigmoid_focal_loss(const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  check_focal(logits, labels, gamma, alpha);
  const int64_t num_rows = logits.size(0), num_classes = logits.size(1);
  const auto type = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor loss = at::zeros({}, logits.options().dtype(type));
  const at::Tensor logits_ = logits.contiguous(), labels_ = labels.contiguous();
  for (const int64_t label : c10::ArrayRef<int64_t>(labels_.const_data_ptr<int64_t>(), num_rows))
    TORCH_CHECK_VALUE(
        label >= -1 && label <= num_classes, "labels must be -1 (ignored), 0 (background) or a class up to ",
        num_classes, ", got ", label);
  if (logits.numel() == 0) return loss;
  const int64_t block_rows = rows_of_block(num_classes);
  // One sum per block, added in order: the same result for any number of threads.
  std::vector<double> sums(at::ceil_div(num_rows, block_rows));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "sigmoid_focal_loss", [&] {
    using T = at::opmath_type<scalar_t>;
    for_each_block<T, scalar_t>(
        logits_, labels_, alpha, block_rows,
        [&](int64_t block, const T* some, const T* weights, int64_t, int64_t count) {
          sums[block] = sum_losses(some, weights, count, static_cast<T>(gamma));
        });
  });
  return loss.fill_(std::accumulate(sums.begin(), sums.end(), 0.));
}

at::Tensor sigmoid_focal_loss_backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  check_focal(logits, labels, gamma, alpha);
  const at::Tensor logits_ = logits.contiguous(), labels_ = labels.contiguous();
  at::Tensor gradients = at::empty_like(logits_);
  if (logits.numel() == 0) return gradients;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "sigmoid_focal_loss_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    scalar_t* const out = gradients.mutable_data_ptr<scalar_t>();
    const T factor = grad.to(at::kCPU, c10::CppTypeToScalarType<T>::value).item<T>();
    for_each_block<T, scalar_t>(
        logits_, labels_, alpha, rows_of_block(logits.size(1)),
        [&](int64_t, const T* some, const T* weights, int64_t start, int64_t count) {
          write_gradients_as(some, weights, count, static_cast<T>(gamma), factor, out + start);
        });
  });
  return gradients;
}

} // namespace

TORCH_LIBRARY_IMPL(atss, CPU, m) {
  m.impl("sigmoid_focal_loss", sigmoid_focal_loss);
  m.impl("sigmoid_focal_loss_backward", sigmoid_focal_loss_backward);
}

} // namespace atss
