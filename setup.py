"""Build the compiled operators, ``atss_core._C``. All else about the package is in pyproject.toml.

Without torch or a C++ compiler the package installs without them and uses torchvision's operators.

ATSS_EXTENSION=0 leaves them out, ATSS_EXTENSION=1 insists on them.
ATSS_CUDA=0 or 1 decides about the CUDA kernels; otherwise they are built where torch has CUDA and a CUDA
toolkit is found (CUDA_HOME). TORCH_CUDA_ARCH_LIST chooses the GPUs.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

CSRC = Path("csrc")
CPU_FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-ffp-contract=off", "-fopenmp-simd"]
CUDA_ARCHITECTURES = "7.5;8.0;8.6;9.0;10.0+PTX"


def switch(name):
    """Return an environment variable's choice: True, False or, where it is not set, None."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name} must be 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def what_is_missing():
    """Say what the extension cannot be built without, or return None."""
    if torch is None:
        return "torch is not importable; install it first and build with --no-build-isolation"
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install one or set CXX"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is not there; install the headers of this Python (python3-dev)"
    return None


def openmp_flags():
    """Return flags to compile and to link with the one OpenMP runtime that torch brings."""
    if sys.platform != "linux":
        return [], []
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    return ["-fopenmp"], [str(bundled[0])] if bundled else ["-fopenmp"]


def wants_cuda():
    """Tell whether to build the CUDA kernels; the headers count, a lone ``nvcc`` is no toolkit."""
    wanted = switch("ATSS_CUDA")
    home = cpp_extension.CUDA_HOME
    is_there = torch.version.cuda and home and Path(home, "include", "cuda_runtime.h").exists()
    if wanted and not is_there:
        raise SystemExit(
            f"ATSS_CUDA=1 needs a torch with CUDA (this one: {torch.version.cuda}) and a CUDA toolkit with "
            f"its headers (CUDA_HOME: {home}); csrc/cuda_toolkit.sh installs one into the environment"
        )
    return bool(is_there) if wanted is None else wanted


def extension():
    """Describe ``atss_core._C``."""
    sources = sorted(str(path) for pattern in ("*.cpp", "cpu/*.cpp") for path in CSRC.glob(pattern))
    compile_openmp, link = openmp_flags()
    # The warnings are for our code: a directory given with -isystem counts as the system's, also for -I.
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    # Naming the version makes ninja compile again when it changes.
    flags = {"cxx": [*CPU_FLAGS, *compile_openmp, *system, f"-DATSS_TORCH={torch.__version__}"]}
    if not wants_cuda():
        return cpp_extension.CppExtension(
            "atss_core._C", sources, extra_compile_args=flags, extra_link_args=link
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    sources += sorted(str(path) for path in CSRC.glob("cuda/*.cu"))
    flags["nvcc"] = ["-O3", "-Xcompiler", "-Wall", f"-DATSS_TORCH={torch.__version__}"]
    return cpp_extension.CUDAExtension(
        "atss_core._C", sources, extra_compile_args=flags, extra_link_args=link
    )


def main():
    """Set up with the extension or, where it cannot be built, without."""
    missing = what_is_missing()
    wanted = switch("ATSS_EXTENSION")
    if wanted and missing:
        raise SystemExit(f"ATSS_EXTENSION=1, but {missing}")
    if missing or wanted is False:
        print(f"compiled operators are left out: {missing or 'ATSS_EXTENSION=0'}", file=sys.stderr)
        setup()
        return
    setup(
        ext_modules=[extension()],
        cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
    )


main()
