// Boxes are (x1, y1, x2, y2) with x2, y2 exclusive: the callers in Python settle the pixel convention.
#pragma once
#include <c10/macros/Macros.h>

#include "inline.h"

namespace atss {

struct Box {
  float x1, y1, x2, y2;
};

// A product that is rounded before it is added to anything.
C10_HOST_DEVICE ATSS_FORCE_INLINE float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;  // -ffp-contract=off
#endif
}

C10_HOST_DEVICE ATSS_FORCE_INLINE float area(const Box& box) {
  return product(box.x2 - box.x1, box.y2 - box.y1);
}

C10_HOST_DEVICE ATSS_FORCE_INLINE float larger(float a, float b) {
  return a > b ? a : b;
}

C10_HOST_DEVICE ATSS_FORCE_INLINE float smaller(float a, float b) {
  return a < b ? a : b;
}

// Intersection over union in float32, every operation rounded by itself so that all machines decide alike. It is
// NaN or 0 where a box has a coordinate that is not finite, or no area; such boxes overlap nothing.
C10_HOST_DEVICE ATSS_FORCE_INLINE float iou(const Box& a, float area_a, const Box& b, float area_b) {
  const float width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), 0.f);
  const float height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), 0.f);
  const float intersection = product(width, height);
  return intersection / (area_a + area_b - intersection);
}

} // namespace atss
