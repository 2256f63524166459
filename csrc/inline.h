#pragma once

// Inline even where the caller is compiled for another instruction set.
#if defined(__CUDACC__)
#define ATSS_FORCE_INLINE __forceinline__
#elif defined(__GNUC__)
#define ATSS_FORCE_INLINE inline __attribute__((always_inline))
#else
#define ATSS_FORCE_INLINE inline
#endif
