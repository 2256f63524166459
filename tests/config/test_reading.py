import os
import re
import socket

import pytest

from atss_core.config import load_cfg
from atss_core.config.reading import MAX_DEPTH, read_yaml, shorten
from atss_core.data.datasets.yolo import read_yolo


def write(folder, text, name="mine.yaml"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(read, error=ValueError):
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def bomb(levels=30):
    return "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  BASE_LR: 1\nSOLVER:\n  STEPS: 2\n", "'SOLVER' is given twice, in lines 1 and 3"),
        ("A: {B: 1}\nC:\n  D: 1\n  E: 2\n  D: 1\n", "'D' is given twice, in lines 3 and 5"),
        ("A: {B: 1, B: 2}\n", "'B' is given twice, in lines 1 and 1"),
        ("names:\n  1: a\n  0x1: b\n", "'0x1' is given twice, in lines 2 and 3"),  # equal keys in Python
        ("A: 2020-99-99\n", "month must be in 1..12"),
        ("A: !!bool maybe\n", "is not valid YAML: 'maybe'"),
        ("A: !!timestamp x\n", "is not valid YAML"),
        ("A: !!int ''\n", "is not valid YAML"),
        (f"A: {'9' * 5000}\n", "is not valid YAML: Exceeds the limit"),
        ("A: \x00\n", "unacceptable character"),
        ("A: !!python/object:os.system x\n", "could not determine a constructor"),
        ("A: [\n", "line 2"),
        ("a: &a [*a]\n", r"alias \*a repeats the node around it, line 1"),
        ("a: *b\n", "undefined alias"),
        (f"a: {'[' * 100_000}\n", f"nested more than {MAX_DEPTH} levels deep, line 1"),
        (f"{'- ' * 100_000}\n", f"nested more than {MAX_DEPTH} levels deep, line 1"),
        (bomb(), "aliases repeat more than 10000 values, line"),
        ("A: [1]\n".encode("utf-16"), "is not UTF-8 text .*; save it as UTF-8"),
        ("A: Größe\n".encode("latin-1"), "is not UTF-8 text .*; save it as UTF-8"),
        ("", "must hold sections"),
    ],
)
def test_invalid_yaml_is_an_error_of_one_line_that_names_the_file(tmp_path, text, message):
    file = write(tmp_path, text)
    for read in (lambda: read_yaml(file, "sections"), lambda: load_cfg(file), lambda: read_yolo(file, "")):
        error = refusal(read)
        assert error.startswith(str(file))
        assert re.search(message.replace("sections", "(sections|keys)"), error)


def test_ordinary_yaml_is_read(tmp_path):
    text = (
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n"
        + "d:\n"
        + "".join(f"  - class {i}\n" for i in range(20_000))
    )
    tree = read_yaml(write(tmp_path, b"\xef\xbb\xbf" + text.encode()), "keys")
    assert tree["b"] == {"x": 1, "y": 3}
    assert tree["c"] == [{"x": 1, "y": 2}] * 2
    assert tree["d"][-1] == "class 19999"


def test_a_key_with_and_without_dots_is_a_duplicate(tmp_path):
    file = write(tmp_path, "SOLVER: {BASE_LR: 1.0}\nSOLVER.BASE_LR: 2.0\n")
    assert refusal(lambda: load_cfg(file)).startswith(f"{file}: SOLVER.BASE_LR is given twice")
    assert load_cfg(write(tmp_path, "SOLVER.BASE_LR: 2.0\n")).SOLVER.BASE_LR == 2.0


def test_the_chain_of_bases_is_limited(tmp_path):
    for i in range(100):
        write(tmp_path, f"_BASE_: {i + 1}.yaml\nSEED: {i}\n", f"{i}.yaml")
    write(tmp_path, "SOLVER: {MAX_ITER: 5}\n", "100.yaml")
    assert load_cfg(tmp_path / "90.yaml").SOLVER.MAX_ITER == 5
    assert "_BASE_ leads through more than 20 files" in refusal(lambda: load_cfg(tmp_path / "0.yaml"))
    write(tmp_path, "_BASE_: 90.yaml\n", "100.yaml")
    assert "leads back to itself" in refusal(lambda: load_cfg(tmp_path / "95.yaml"))


@pytest.mark.parametrize("is_base", [False, True])
def test_only_regular_files_are_opened(tmp_path, is_base):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))

    def load(name):
        path = tmp_path / name
        return load_cfg(write(tmp_path, f"_BASE_: {path}\n") if is_base else path)

    for name in ("pipe", "folder", "socket"):
        assert f"{tmp_path / name}: expected a file, got a {name}" in refusal(lambda name=name: load(name))
    assert "/dev/zero: expected a file, got a device" in refusal(lambda: load("/dev/zero"))
    for name in ("loop", "nothing", "x" * 5000):
        refusal(lambda name=name: load(name), FileNotFoundError)


def test_shortened_values_are_short():
    for value in ("x" * 10**6, [0] * 10**6, 10**4000, 1 << 10**6, [[[[[["deep"]]]]]]):
        assert len(shorten(value)) < 200
