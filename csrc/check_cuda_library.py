"""Load an extension that was built with CUDA and check that every operator has its CUDA kernel.

python csrc/check_cuda_library.py FOLDER
"""

import sys
from pathlib import Path

import torch


def main():
    """Load the library in the folder and look at each operator's kernels."""
    (library,) = Path(sys.argv[1]).rglob("_C*.so")
    torch.ops.load_library(library)
    names = {
        str(schema.name) for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("atss::")
    }
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [
        f"{name} on {key}" for name in sorted(names) for key in ("CPU", "CUDA") if not has_kernel(name, key)
    ]
    if missing or not names:
        sys.exit(f"{library} has no {', '.join(missing) or 'operators'}")
    print(f"{library} loads; {len(names)} operators with CPU and CUDA kernels")


main()
