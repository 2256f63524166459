#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build the operators with CUDA, run the tests marked "cuda", look for races
# and stray accesses where NVIDIA's compute-sanitizer is installed, and run the benchmarks on the GPU. Figures go to
# RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
ATSS_EXTENSION=1 ATSS_CUDA=1 python setup.py --quiet build_ext --inplace
python -m pytest -m cuda -q
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
      python -m pytest -m cuda -q tests/layers -k "golden or equals_a_loop or nothing or no_images"
  done
else
  echo "compute-sanitizer is not installed: no check for races and stray accesses"
fi
python benchmarks/ops.py --device cuda
python benchmarks/assigner.py --device cuda
