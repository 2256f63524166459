#pragma once
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

namespace atss {

constexpr int kWarp = 32;

// The sum over a warp, in all its lanes, always in the same order.
template <typename T>
__device__ T sum_over_warp(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over a block of whole warps, in thread 0. `shared` has room for one value per warp.
template <typename T>
__device__ T sum_over_block(T value, T* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  value = sum_over_warp(value);
  __syncthreads();  // an earlier sum may still be read
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < num_warps; ++i) total += shared[i];
  return total;
}

} // namespace atss
