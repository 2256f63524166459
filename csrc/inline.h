#pragma once

// Inline always: a vectorised loop cannot call, and a function compiled for several instruction sets must take what it
// calls along.
#if defined(__CUDACC__)
#define ATSS_FORCE_INLINE __forceinline__
#define ATSS_INLINE_LAMBDA
#elif defined(__GNUC__)
#define ATSS_FORCE_INLINE inline __attribute__((always_inline))
#define ATSS_INLINE_LAMBDA __attribute__((always_inline))
#else
#define ATSS_FORCE_INLINE inline
#define ATSS_INLINE_LAMBDA
#endif
