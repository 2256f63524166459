import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from atss_core.layers import ops_info
from atss_core.layers.extension import COMPILED_DEVICES
from tests.golden import ROOT


def python(code, **environment):
    """Run code in a fresh interpreter; return the exit status and all output."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATSS_OPS": "", "CUDA_VISIBLE_DEVICES": "", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


SHOW = "from atss_core.layers import ops_info; print(ops_info())"
# As if the extension had never been built.
HIDE = (
    "import importlib.util as u; f = u.find_spec; "
    "u.find_spec = lambda name, *a: None if name == 'atss_core._C' else f(name, *a); "
)


def test_info_names_the_operators_in_use():
    assert f"operators: {'compiled' if 'cpu' in COMPILED_DEVICES else 'torchvision'} on cpu" in ops_info()


def test_environment_variable_selects_torchvision():
    status, printed = python(SHOW, ATSS_OPS="torchvision")
    assert status == 0
    assert "operators: torchvision on cpu (ATSS_OPS=torchvision asks for it)\n" in printed


def test_missing_extension_warns_once_how_to_build_it():
    status, printed = python(HIDE + SHOW)
    assert status == 0
    (warning,) = (line for line in printed.splitlines() if line.startswith("torchvision's"))
    (info,) = (line for line in printed.splitlines() if line.startswith("operators: "))
    assert warning.startswith(
        "torchvision's operators are used: atss_core._C was not built; `make ext` builds it"
    )
    assert info.startswith("operators: torchvision on cpu (atss_core._C was not built")
    assert "torchvision's" not in python(HIDE + SHOW, LOCAL_RANK="1")[1]  # only one process warns


def test_missing_extension_with_compiled_is_refused():
    status, printed = python(HIDE + SHOW, ATSS_OPS="compiled")
    assert status == 1
    assert "ImportError: ATSS_OPS=compiled, but atss_core._C was not built" in printed


def test_wrong_choice_is_refused():
    status, printed = python(SHOW, ATSS_OPS="fast")
    assert status == 1
    assert "ATSS_OPS must be compiled or torchvision, or not be set; got 'fast'" in printed


def test_extension_that_does_not_load_is_an_error(tmp_path):
    package = tmp_path / "atss_core"
    shutil.copytree(ROOT / "atss_core", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (package / f"_C{suffix}").write_bytes(b"not a library")
    status, printed = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {SHOW}")
    assert status == 1
    assert "ImportError: the compiled operators do not load" in printed
    assert "Build them again with `make ext`, or set ATSS_OPS=torchvision" in printed


def test_extension_of_another_pytorch_is_an_error(tmp_path):
    package = tmp_path / "atss_core"
    shutil.copytree(ROOT / "atss_core", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (package / "_C.py").write_text("torch_version = '1.0'")
    status, printed = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {SHOW}")
    assert status == 1
    assert "ImportError: the compiled operators were built with PyTorch 1.0, this is" in printed


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ATSS_EXTENSION": "1", "CXX": "no-such-compiler"},
            "ATSS_EXTENSION=1, but there is no C++ compiler",
        ),
        ({"ATSS_EXTENSION": "yes"}, "ATSS_EXTENSION must be 0 or 1, got 'yes'"),
        ({"ATSS_CUDA": "1", "CUDA_HOME": "/nowhere"}, "ATSS_CUDA=1, but "),
    ],
)
def test_impossible_build_is_refused(environment, message):
    run = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert message in run.stderr


def test_build_without_compiler_skips_the_extension_with_a_message():
    run = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        env={**os.environ, "CXX": "no-such-compiler", "ATSS_EXTENSION": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "compiled operators are left out: there is no C++ compiler 'no-such-compiler'" in run.stderr
