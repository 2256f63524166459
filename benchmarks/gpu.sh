#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests marked "cuda" and the benchmarks on it.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -m cuda -q
python benchmarks/assigner.py --device cuda
