// The focal loss (arXiv 1708.02002, equation 5) of one logit.
#pragma once
#include <c10/macros/Macros.h>

#include "inline.h"

namespace atss {

// A background logit x costs (1 - alpha) p^gamma softplus(x), p = sigmoid(x). An object's is the same with -x for x
// and alpha for 1 - alpha. So both terms are powers and sums of e = exp(-|x|), which cannot overflow. Math brings
// exp of numbers up to 0, exp and log1p of numbers in [0, 1].
template <typename T, typename Math>
struct FocalTerm {
  T loss, gradient;

  C10_HOST_DEVICE ATSS_FORCE_INLINE FocalTerm(T x, T gamma, bool is_gamma_2) {
    const T zero = 0, one = 1;
    const T e = Math::exp(x < zero ? x : -x);
    const T tail = one / (one + e);
    const T p = x < zero ? e * tail : tail;
    const T rest = x < zero ? tail : e * tail;  // 1 - p, without cancellation
    const T log1p_e = Math::log1p(e);
    const T softplus = (x < zero ? zero : x) + log1p_e;
    const T log_p = (x < zero ? x : zero) - log1p_e;
    // log_p is minus infinity for such logits, which times zero is not a number.
    const T power = is_gamma_2 ? p * p : gamma == zero ? one : Math::exp(gamma * log_p);
    loss = power * softplus;
    gradient = power * (gamma * rest * softplus + p);
  }
};

} // namespace atss
