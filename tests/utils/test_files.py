import os
import socket

import pytest

from atss_core.utils.files import atomic_write, check_regular, files_below, read_text, refuse_overwriting


def test_atomic_write_leaves_the_old_file_and_no_temporary_one_on_an_error(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write_half():
        with atomic_write(file, "w") as stream:
            stream.write("new")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_use_two_temporary_files(tmp_path):
    with atomic_write(tmp_path / "a", "w") as first, atomic_write(tmp_path / "a", "w") as second:
        assert first.name != second.name
        first.write("1")
        second.write("2")
    assert (tmp_path / "a").read_text() == "1"  # the outer block ends last


def test_files_below_goes_through_links_and_lists_each_folder_once(tmp_path):
    root = tmp_path / "root"
    for folder in (root / "b", tmp_path / "other" / "deep"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "a").symlink_to(root / "b")  # the own name counts, though the link comes first
    (root / "c").symlink_to(tmp_path / "other")
    (root / "d").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "up").symlink_to(root)
    (root / "itself").symlink_to("itself")
    (root / "nowhere").symlink_to("missing")
    (root / "linked").symlink_to(root / "b" / "file")
    found = [path.relative_to(root).as_posix() for path in files_below(root)]
    assert sorted(found) == ["b/file", "c/deep/file", "itself", "linked", "nowhere"]


def test_only_plain_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for path, kind in (
            (tmp_path, "a folder"),
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(ValueError, match=f"expected a file, got {kind}"):
                check_regular(path)
    for name in ("loop", "gone", "absent"):
        with pytest.raises(FileNotFoundError, match=name):
            check_regular(tmp_path / name)
    with pytest.raises(ValueError, match="a pipe"):
        read_text(tmp_path / "pipe")


def test_an_input_is_no_output_under_any_name(tmp_path):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.png"
    file.write_bytes(b"a")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "b.png").symlink_to(file)
    os.link(file, tmp_path / "hard.png")
    names = ("in/a.png", "link/a.png", "in/../in/./a.png", "b.png", "hard.png")
    for output in (tmp_path / name for name in names):
        with pytest.raises(ValueError, match=r"would be overwritten: .*\. Give another name\.$") as error:
            refuse_overwriting([tmp_path / "new", output], [tmp_path / "other", file], "Give another name.")
        assert str(error.value).startswith(str(output))
    refuse_overwriting([tmp_path / "new", tmp_path / "in" / "b.png"], [file, "https://a.org/a.png"], "")
