// Kernels that the compiler vectorises are compiled for several instruction sets; the fastest is chosen at load.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(ATSS_BASELINE)
#define ATSS_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATSS_MULTIVERSION
#endif

// From here to the end of the file a product and a sum may become one instruction with one rounding. The build forbids
// that elsewhere, so that decisions about boxes are the same on every machine.
#if defined(__clang__)
#define ATSS_ALLOW_FMA _Pragma("clang fp contract(fast)")
#elif defined(__GNUC__)
#define ATSS_ALLOW_FMA _Pragma("GCC optimize(\"fp-contract=fast\")")
#else
#define ATSS_ALLOW_FMA
#endif
