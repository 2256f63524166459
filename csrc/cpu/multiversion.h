// Kernels that the compiler vectorises are compiled for several instruction sets; the fastest is chosen at load.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(ATSS_BASELINE)
#define ATSS_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATSS_MULTIVERSION
#endif
