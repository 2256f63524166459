// How vectorised kernels are compiled.
#pragma once
#include <cstdlib>  // defines __GLIBC__ where that is the library

// For several instruction sets, of which the fastest is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(ATSS_BASELINE)
#if __GNUC__ >= 12
#define ATSS_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATSS_MULTIVERSION __attribute__((target_clones("avx2", "default")))
#endif
#else
#define ATSS_MULTIVERSION
#endif

// From here to the end of the file a product and a sum may become one instruction with one rounding. The build forbids
// that elsewhere, so that decisions about boxes are the same on every machine. It stands behind all library headers.
#if defined(__clang__)
#define ATSS_ALLOW_FMA _Pragma("clang fp contract(fast)")
#elif defined(__GNUC__)
#define ATSS_ALLOW_FMA _Pragma("GCC optimize(\"fp-contract=fast\")")
#else
#define ATSS_ALLOW_FMA
#endif
