"""Build the compiled operators, ``atss_core._C``. All else about the package is in pyproject.toml.

Without torch or a C++ compiler the package installs without them and uses torchvision's operators.

ATSS_EXTENSION=0 leaves them out, ATSS_EXTENSION=1 insists on them.
ATSS_CUDA=0 or 1 decides about the CUDA kernels; otherwise they are built where torch has CUDA and a CUDA
toolkit is found (CUDA_HOME). TORCH_CUDA_ARCH_LIST chooses the GPUs.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

CSRC = Path("csrc")
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
# Without contraction every product is rounded, so that all machines decide alike which boxes overlap.
CXX_FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-ffp-contract=off", "-fopenmp-simd"]
# GPUs that the kernels are compiled for where there is none, and the toolkit that first knows them.
ARCHITECTURES = {"7.5": 10.0, "8.0": 11.0, "8.6": 11.1, "9.0": 11.8, "10.0": 12.8}


def say(message):
    """Print to where pip shows it with -v and on failure."""
    print(f"atss: {message}", file=sys.stderr)


def switch(name):
    """Return an environment variable's choice: True, False or, where it is not set, None."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name} must be 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def output_of(command, text=""):
    """Run a program on a text; return its exit status (None if there is no such program) and output."""
    try:
        run = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except OSError:
        return None, ""
    return run.returncode, run.stdout + run.stderr


def what_is_missing():
    """Say what the extension cannot be built without, or return None."""
    if torch is None:
        return "torch is not importable; install it first and build with --no-build-isolation"
    include = sysconfig.get_paths()["include"]
    program = "#include <Python.h>\n#include <vector>\n"
    status, output = output_of([*COMPILER, f"-I{include}", "-fsyntax-only", "-x", "c++", "-"], program)
    if status is None:
        return f"there is no C++ compiler {COMPILER[0]!r}; install one or set CXX"
    if status != 0:
        return (
            f"the C++ compiler does not find Python.h or its own library (python3-dev, g++): {output[:300]}"
        )
    return None


def openmp_flags():
    """Return flags to compile and to link with the one OpenMP runtime that torch brings, GCC's."""
    _, version = output_of([*COMPILER, "--version"])
    if sys.platform != "linux" or "clang" in version:
        say("built without OpenMP, which needs GCC on Linux: the operators run on one CPU thread")
        return [], []
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    return ["-fopenmp"], [str(bundled[0])] if bundled else ["-fopenmp"]


def toolkit_version():
    """Return the version of the CUDA toolkit, as a number such as 13.2, or why there is none that fits."""
    home = cpp_extension.CUDA_HOME
    if not torch.version.cuda or not home:
        return f"torch has CUDA {torch.version.cuda} and CUDA_HOME is {home}"
    # A lone nvcc is no toolkit; conda keeps the headers in targets.
    if not any(
        next(Path(home).glob(f"{place}/cuda_runtime.h"), None) for place in ("include", "targets/*/include")
    ):
        return f"there is no cuda_runtime.h in CUDA_HOME {home}"
    _, output = output_of([str(Path(home, "bin", "nvcc")), "--version"])
    found = re.search(r"release (\d+\.\d+)", output)
    if found is None:
        return f"there is no nvcc in CUDA_HOME {home}"
    if found[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the toolkit in {home} is CUDA {found[1]}, and torch was built with {torch.version.cuda}"
    return float(found[1])


def cuda_flags():
    """Return the flags of nvcc, or None if the CUDA kernels are left out."""
    wanted = switch("ATSS_CUDA")
    toolkit = toolkit_version() if wanted is not False else "ATSS_CUDA=0"
    if isinstance(toolkit, str):
        if wanted:
            raise SystemExit(f"ATSS_CUDA=1, but {toolkit}; csrc/cuda_toolkit.sh installs a toolkit that fits")
        say(f"CUDA kernels are left out: {toolkit}")
        return None
    if not torch.cuda.is_available():
        known = [name for name, first in ARCHITECTURES.items() if toolkit >= first]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(known) + "+PTX")
    return ["-O3", "-Xcompiler", "-Wall"]


def extension():
    """Describe ``atss_core._C``."""
    sources = sorted(str(path) for pattern in ("*.cpp", "cpu/*.cpp") for path in CSRC.glob(pattern))
    if not sources:
        raise SystemExit("csrc is not there; build from a checkout or a complete source archive")
    compile_openmp, link = openmp_flags()
    # The warnings are for our code: a directory given with -isystem counts as the system's, also for -I.
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    # ops.cpp remembers the version; and as it is in all commands, another one makes ninja compile again.
    version = f"-DATSS_TORCH={torch.__version__}"
    nvcc = cuda_flags()
    flags = {"cxx": [*CXX_FLAGS, *compile_openmp, *system, version], "nvcc": [*(nvcc or []), version]}
    kind = cpp_extension.CppExtension
    if nvcc is not None:
        kind = cpp_extension.CUDAExtension
        sources += sorted(str(path) for path in CSRC.glob("cuda/*.cu"))
    return kind("atss_core._C", sources, extra_compile_args=flags, extra_link_args=link)


class BuildWithConfigs(build_py):
    """Put the configurations into the package, where a wheel is made; a checkout has them beside it."""

    def run(self):
        """Copy them after the modules."""
        super().run()
        if not self.editable_mode:
            only_yaml = shutil.ignore_patterns("*.py", "*.md", "__pycache__")
            target = Path(self.build_lib, "atss_core", "configs")
            shutil.copytree("configs", target, ignore=only_yaml, dirs_exist_ok=True)


def main():
    """Set up with the extension or, where it cannot be built, without."""
    missing = what_is_missing()
    wanted = switch("ATSS_EXTENSION")
    if missing and (wanted or switch("ATSS_CUDA")):
        raise SystemExit(f"{'ATSS_EXTENSION' if wanted else 'ATSS_CUDA'}=1, but {missing}")
    if wanted is False and switch("ATSS_CUDA"):
        raise SystemExit("ATSS_CUDA=1 asks for what ATSS_EXTENSION=0 leaves out")
    if missing or wanted is False:
        say(f"compiled operators are left out: {missing or 'ATSS_EXTENSION=0'}")
        setup(cmdclass={"build_py": BuildWithConfigs})
    else:
        commands = {"build_py": BuildWithConfigs, "build_ext": cpp_extension.BuildExtension}
        setup(ext_modules=[extension()], cmdclass=commands)


main()
