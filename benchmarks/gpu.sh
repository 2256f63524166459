#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build the operators with CUDA, run the tests marked "cuda" and the benchmarks
# on the GPU, and look for races and stray accesses where NVIDIA's compute-sanitizer is installed. Figures go to
# RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
ATSS_EXTENSION=1 ATSS_CUDA=1 python setup.py --quiet build_ext --inplace
export ATSS_OPS=compiled
python -m pytest -m cuda -q
python benchmarks/ops.py --device cuda
python benchmarks/assigner.py --device cuda
if command -v compute-sanitizer > /dev/null; then
  some="golden or loop or nothing or no_images or many_boxes or half_types or storage or all_gradients"
  for tool in memcheck racecheck synccheck; do
    # Each tensor in memory of its own, so that an access beyond it shows.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
      python -m pytest -m cuda -q tests/layers -k "$some"
  done
else
  echo "compute-sanitizer is not installed: no check for races and stray accesses"
fi
