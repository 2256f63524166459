#!/usr/bin/env bash
# Build the CPU operators with AddressSanitizer and UndefinedBehaviorSanitizer and run their tests.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
folder=build/sanitize
# Without function clones: their resolvers run before the sanitizers are ready.
flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DATSS_BASELINE"
ATSS_EXTENSION=1 ATSS_CUDA=0 CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="$flags" \
  $PYTHON setup.py --quiet build --build-lib $folder --build-temp $folder-objects
# The interpreter and PyTorch are not instrumented and keep memory until the end: leaks are not looked for.
LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 ATSS_OPS=compiled PYTHONPATH=$folder PYTHONSAFEPATH=1 \
  $PYTHON -m pytest --import-mode=append -p no:cacheprovider --capture=no tests/layers "$@"
