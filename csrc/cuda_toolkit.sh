#!/usr/bin/env bash
# Install a CUDA compiler for the active environment's PyTorch from the Python package index, and print the variables
# that a build needs. A GPU is not needed: what is compiled so loads on any machine and runs on those that have one.
#
#     variables="$(csrc/cuda_toolkit.sh)" && eval "$variables" && ATSS_CUDA=1 make ext
set -euo pipefail
PYTHON=${PYTHON:-python}
version=$($PYTHON -c "import torch; print(torch.version.cuda or '')")
if [ -z "$version" ]; then
  echo "this PyTorch was built without CUDA; install a build with it first" >&2
  exit 1
fi
if [ "${version%%.*}" -lt 13 ]; then
  echo "the index has whole toolkits from CUDA 13 on; this PyTorch is built with $version" >&2
  exit 1
fi
$PYTHON -m pip install --quiet "cuda-toolkit[nvcc]==$version.*" "nvidia-nvvm==$version.*" "nvidia-cuda-crt==$version.*" >&2
home=$($PYTHON - <<'PY'
import sysconfig, pathlib
print(next(pathlib.Path(sysconfig.get_path("purelib"), "nvidia").glob("cu[0-9]*/bin/nvcc")).parents[1])
PY
)
# The packages carry libcudart with its version in the name alone; a linker looks for the name without.
links="$home/link"
mkdir -p "$links"
ln -sf "$(ls "$home"/lib/libcudart.so.* | head -n 1)" "$links/libcudart.so"
echo "export CUDA_HOME='$home'"
echo "export LIBRARY_PATH='$links'\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
