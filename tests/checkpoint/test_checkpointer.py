import contextlib
import os
import pickle
import random
import re
import shutil
import stat
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from atss_core.checkpoint.checkpointer import (
    Checkpointer,
    last_checkpoint,
    load_weights_strictly,
    random_state,
    read_checkpoint,
    set_random_state,
)
from atss_core.utils.files import atomic_write


def make(folder, seed=0, width=3):
    torch.manual_seed(seed)
    model = nn.Linear(2, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5**i)
    return Checkpointer(folder, model, optimizer, scheduler, ["cat", "dog", "cow"])


def step(run):
    run.optimizer.zero_grad()
    run.model(torch.rand(4, 2)).square().sum().backward()
    run.optimizer.step()
    run.scheduler.step()


def test_resumed_run_continues_bit_for_bit(tmp_path):
    run = make(tmp_path)
    step(run)
    run.save("model_0000001", 1)
    for _ in range(3):
        step(run)
    other = make(tmp_path, seed=1)
    assert other.resume() == 1
    for _ in range(3):
        step(other)
    assert torch.equal(other.model.weight, run.model.weight)
    assert other.scheduler.get_last_lr() == run.scheduler.get_last_lr()


def test_changed_settings_take_effect_after_resuming(tmp_path):
    run = make(tmp_path)
    step(run)
    run.save("model_0000001", 1)
    other = make(tmp_path)
    other.optimizer.param_groups[0]["momentum"] = 0.5
    other.scheduler.base_lrs[0] = 0.2
    other.resume()
    assert other.optimizer.param_groups[0]["momentum"] == 0.5
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # 0.2 halved once
    step(other)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = make(tmp_path)
    run.save("model_0000001", 1)
    run.model.weight.data[0, 0] = torch.nan
    with pytest.raises(ArithmeticError, match="1 weights are not finite after iteration 2, first weight"):
        run.save("model_0000002", 2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    make(tmp_path).save("model_0000001", 1)
    with atomic_write(tmp_path / "model_0000002.pth"):
        (name,) = [file.name for file in tmp_path.glob(".*.tmp")]
        host = name.removeprefix(".model_0000002.pth.").split(".")[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pid = dead.pid
    own = f".model_0000003.pth.{host}.{os.getpid()}.0123abcd.tmp"  # being written by a process that runs
    foreign = ".notes.tmp"
    for file in (f".model_0000002.pth.{host}.{pid}.0123abcd.tmp", own, foreign):
        (tmp_path / file).write_bytes(b"half")
    make(tmp_path).resume()
    left = {"last_checkpoint", "model_0000001.pth", "model_0000002.pth", own, foreign}
    assert {file.name for file in tmp_path.iterdir()} == left


def test_random_generators_are_restored():
    state = random_state()
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_empty_folder_has_nothing_to_resume(tmp_path):
    assert make(tmp_path).resume() is None
    assert last_checkpoint(tmp_path) is None


def test_interrupted_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    run = make(tmp_path)
    run.save("model_0000001", 1)
    real_save = torch.save

    def cut_off(state, file):
        real_save(state, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.save("model_0000002", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert make(tmp_path).resume() == 1


def test_published_pointer_with_a_path_is_understood(tmp_path):
    make(tmp_path).save("model_0000007", 7)
    (tmp_path / "last_checkpoint").write_text("/somewhere/else/model_0000007.pth")
    assert last_checkpoint(tmp_path) == tmp_path / "model_0000007.pth"
    (tmp_path / "model_0000007.pth").unlink()
    with pytest.raises(ValueError, match=r"names model_0000007.pth, which is not there"):
        last_checkpoint(tmp_path)


LOST_POINTERS = {
    "missing": lambda pointer: pointer.unlink(),
    "dangling": lambda pointer: pointer.write_text("model_0000009.pth"),
    "too long": lambda pointer: pointer.write_text("x" * 5000),
    "empty": lambda pointer: pointer.write_text(""),
    "binary": lambda pointer: pointer.write_bytes(b"\xff\x00\xfe"),
    "zeros": lambda pointer: pointer.write_bytes(bytes(16)),
    "folder": lambda pointer: (pointer.unlink(), pointer.mkdir()),
    "link to nothing": lambda pointer: (pointer.unlink(), pointer.symlink_to("gone")),
    "pipe": lambda pointer: (pointer.unlink(), os.mkfifo(pointer)),
    "names a folder": lambda pointer: pointer.write_text(".."),
}


@pytest.mark.parametrize("lose", LOST_POINTERS)
@pytest.mark.parametrize(
    ("saved", "newest"),
    [
        ([("model_0000002", 2), ("model_0000010", 10)], "model_0000010.pth"),
        ([("model_9999999", 9999999), ("model_10000000", 10000000)], "model_10000000.pth"),  # by number
        ([("model_0000002", 2), ("model_final", 3)], "model_final.pth"),
        ([("model_final", 3), ("model_0000010", 10)], "model_0000010.pth"),  # a run that was prolonged
    ],
)
def test_run_resumes_from_the_newest_checkpoint_without_a_pointer(saved, newest, lose, tmp_path, caplog):
    run = make(tmp_path)
    for name, iteration in saved:
        step(run)
        run.save(name, iteration)
    run.save_best(99999999, 0.5)
    shutil.copy(tmp_path / newest, tmp_path / "model_final_wo_solver_states.pth")
    LOST_POINTERS[lose](tmp_path / "last_checkpoint")
    other = make(tmp_path, seed=1)
    assert other.resume() == dict(saved)[newest.removesuffix(".pth")]
    expected = torch.load(tmp_path / newest)["model"]
    assert torch.equal(other.model.weight, expected["weight"])
    assert last_checkpoint(tmp_path) == tmp_path / newest
    assert f"resuming from the newest checkpoint that can be read, {tmp_path / newest}" in caplog.text
    assert "last_checkpoint" in caplog.text


def test_damaged_checkpoints_are_skipped_without_a_pointer(tmp_path, caplog):
    run = make(tmp_path)
    for iteration in (1, 2, 3):
        run.save(f"model_000000{iteration}", iteration)
    run.save("model_final", 4)
    for file in ("last_checkpoint", "model_0000003.pth", "model_final.pth"):
        (tmp_path / file).write_bytes(b"PK")
    assert make(tmp_path).resume() == 2
    assert "model_0000003.pth cannot be read as a checkpoint" in caplog.text
    for file in tmp_path.glob("model_*.pth"):
        file.write_bytes(b"PK")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no other checkpoint of .* set OUTPUT_DIR to an empty folder"):
            make(tmp_path).resume()
        (tmp_path / "last_checkpoint").unlink(missing_ok=True)


def test_damaged_final_checkpoint_alone_is_not_overwritten(tmp_path):
    make(tmp_path).save("model_final", 4)
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "model_final.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no other checkpoint of .* can be read"):
        make(tmp_path).resume()


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be flushed")
def test_checkpoint_is_on_the_disk_before_its_pointer(tmp_path, monkeypatch):
    events = []

    def spy(name, describe):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (events.append((name, describe(*args))), real(*args))[1])

    spy("replace", lambda source, target: target.name)
    spy("fsync", lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode))
    make(tmp_path).save("model_0000001", 1)
    assert events == [
        ("fsync", False),
        ("replace", "model_0000001.pth"),
        ("fsync", True),
        ("fsync", False),
        ("replace", "last_checkpoint"),
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: {"model": m},
        lambda m: {"model": m, "iteration": 5},
        lambda m: {"state_dict": m, "epoch": 5},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_formats_are_read(tmp_path, wrap, prefix):
    weights = nn.Linear(2, 3).state_dict()
    torch.save(wrap({prefix + key: value for key, value in weights.items()}), tmp_path / "old.pth")
    model = nn.Linear(2, 3)
    load_weights_strictly(model, read_checkpoint(tmp_path / "old.pth")["model"], "old.pth")
    assert all(torch.equal(model.state_dict()[key], weights[key]) for key in weights)


def test_another_architecture_is_reported_and_the_model_unchanged():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(3), "9.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_weights_strictly(model, other, "other.pth")
    for part in (
        "missing 1.weight, 1.bias (2)",
        "unexpected 9.bias (1)",
        "of another shape 0.weight 4x2 -> 3x2 (1)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_truncated_checkpoint_is_explained(tmp_path):
    make(tmp_path).save("model_0000001", 1)
    file = tmp_path / "model_0000001.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model_0000001.pth cannot be read as a checkpoint .*truncated"):
        make(tmp_path).resume()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint .*truncated"),
        (b"not a checkpoint", r"is no checkpoint .*; name a .pth or .safetensors file$"),
        (
            b"\n<!DOCTYPE html><html>",
            "is no checkpoint, but a web page; download the file from its direct link$",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc",
            "a pointer of Git LFS; run git lfs pull$",
        ),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is no checkpoint, but an image"),
        (b"\x89PNG\r\n", "is no checkpoint, but an image"),
    ],
)
def test_other_files_are_explained(tmp_path, content, message):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(tmp_path / "file.pth")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none.pth"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_of_published_checkpoints_are_read(tmp_path, zipped):
    model = OrderedDict(nn.Linear(2, 3).state_dict())
    model._metadata = OrderedDict({"": {"version": 1}})
    beside = {
        "iteration": np.int64(5),
        "rate": np.float64(0.1),
        "loss": np.float32(0.5),
        "seed": np.int32(-1),
    }
    path = tmp_path / "old.pth"
    torch.save({"model": model, **beside}, path, _use_new_zipfile_serialization=zipped)
    state = read_checkpoint(path)
    assert {key: state[key] for key in beside} == beside
    assert {type(state[key]) for key in beside} == {int, float}
    assert all(torch.equal(state["model"][key], model[key]) for key in model)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Namespace(a=1), "argparse.Namespace"),
        (PurePosixPath("a"), "pathlib.PurePosixPath"),
        (np.zeros(3), "numpy.*_reconstruct"),
    ],
)
def test_other_objects_are_named(tmp_path, zipped, value, name):
    content = {"model": nn.Linear(2, 3).state_dict(), "args": value}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=zipped)
    message = rf"it holds {name}, which is not a plain tensor or container; re-save its state dict$"
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(tmp_path / "old.pth")
    assert str(error.value).isprintable()
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1), 1: torch.zeros(1)}}, "expected tensors by name, but 1 is a Tensor"),
        ({"model": {"a": torch.zeros(1), "b": 3}}, "expected tensors by name, but 'b' is a int"),
        ({"a": torch.zeros(1), "n": 1}, "expected tensors by name, but 'n' is a int"),
        ({"model": {"a": torch.zeros(1)}, "ema": {"model": {"a": None}}}, "but 'a' is a NoneType"),
        ({"model": {"a": torch.zeros(1)}, "ema": {"model": None}}, "holds no weights"),
        ({"model": {}}, "holds no weights"),
        ({}, "holds no weights"),
        ([torch.zeros(1)], "holds no weights"),
    ],
)
def test_other_content_than_a_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.filterwarnings("ignore:.*(CSR|prototype)")
@pytest.mark.parametrize(
    ("make_value", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.zeros(3, device="meta"), "a meta tensor"),
        (lambda: torch.zeros(1).expand(10**12), "an expanded tensor"),  # 4 TB in some bytes
        (lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]), "a nested tensor"),
    ],
)
def test_tensors_that_are_not_plain_are_refused(tmp_path, make_value, kind):
    torch.save({"model": {"a": torch.zeros(1), "b": make_value()}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd.pth: expected plain dense tensors, got {kind} for 'b'"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("names", ["cat", [1, 2], ["cat", None], {"cat": 1}, 3, torch.zeros(2, 2)])
def test_mistyped_class_names_are_refused(tmp_path, names):
    torch.save({"model": {"a": torch.zeros(1)}, "class_names": names}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd.pth: expected class_names to be a list of text, got") as error:
        read_checkpoint(tmp_path / "odd.pth")
    assert str(error.value).isprintable()


def test_class_names_may_be_a_tuple_or_none(tmp_path):
    for names, expected in ((("cat", "dog"), ["cat", "dog"]), (None, None), ([], [])):
        torch.save({"model": {"a": torch.zeros(1)}, "class_names": names}, tmp_path / "names.pth")
        assert read_checkpoint(tmp_path / "names.pth")["class_names"] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, torch.nan, 3.0]), "1 that are not, first bias with NaN or infinite values"),
        (torch.tensor([1.0, -torch.inf, 3.0]), "first bias with NaN or infinite values"),
        (torch.tensor([1, 2, 3]), "first bias of type int64 instead of float32"),
        (torch.tensor([True, False, True]), "first bias of type bool instead of float32"),
        (torch.tensor([1.0, 2.0, 3.0], dtype=torch.complex64), "first bias of type complex64 instead of"),
    ],
)
def test_values_of_other_types_or_not_finite_are_refused(value, message):
    model = nn.Linear(2, 3)
    before = model.bias.clone()
    with pytest.raises(ValueError, match=rf"a.pth: expected finite weights .*, got .*{message}"):
        load_weights_strictly(model, {"weight": torch.zeros(3, 2), "bias": value}, "a.pth")
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_other_precision_are_loaded(dtype):
    model = nn.Linear(2, 3)
    value = torch.tensor([0.5, -2.0, 3.0])
    load_weights_strictly(model, {"weight": torch.ones(3, 2).to(dtype), "bias": value.to(dtype)}, "a.pth")
    assert torch.equal(model.bias, value)
    assert model.bias.dtype == torch.float32


DAMAGED_STATES = {
    "iteration of text": lambda state: state.update(iteration="9"),
    "iteration below zero": lambda state: state.update(iteration=-1),
    "iteration too large": lambda state: state.update(iteration=1 << 80),
    "iteration of a flag": lambda state: state.update(iteration=True),
    "optimizer of text": lambda state: state.update(optimizer="sgd"),
    "optimizer without groups": lambda state: state["optimizer"].pop("param_groups"),
    "optimizer of another model": lambda state: state["optimizer"]["param_groups"][0]["params"].pop(),
    "momentum of another shape": lambda state: state["optimizer"]["state"][0].update(
        momentum_buffer=torch.zeros(1)
    ),
    "momentum of NaN": lambda state: state["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan),
    "momentum of text": lambda state: state["optimizer"]["state"][1].update(momentum_buffer="x"),
    "momentum of nothing known": lambda state: state["optimizer"]["state"].update(x={"a": 1}),
    "random of None": lambda state: state.update(random=None),
    "random without Python's": lambda state: state["random"].pop("python"),
    "random cut off": lambda state: state["random"].update(torch=state["random"]["torch"][:9]),
    "random of floats": lambda state: state["random"].update(torch=state["random"]["torch"].float()),
    "NumPy's random cut off": lambda state: state["random"].update(numpy=(torch.zeros(3), 1, 0, 0.0)),
    "classes of text": lambda state: state.update(class_names="cat dog cow"),
    "EMA of text": lambda state: state.update(ema="x"),
    "EMA without a number": lambda state: state["ema"].pop("num_updates"),
    "EMA of NaN": lambda state: state["ema"]["model"]["bias"].fill_(torch.nan),
    "EMA of another model": lambda state: state["ema"]["model"].pop("bias"),
}


@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_damaged_state_of_a_run_ends_in_one_line(damage, tmp_path):
    run = make(tmp_path)
    run.ema = AveragedModel(run.model)
    step(run)
    run.save("model_0000001", 1)
    state = torch.load(tmp_path / "model_0000001.pth")
    DAMAGED_STATES[damage](state)
    torch.save(state, tmp_path / "model_0000001.pth")
    other = make(tmp_path)
    other.ema = AveragedModel(other.model)
    with pytest.raises(ValueError, match=r"model_0000001.pth: expected .*, got .*") as error:
        other.resume()
    assert str(error.value).isprintable()
    assert "OUTPUT_DIR" in str(error.value)


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", ["zipped", "legacy", "bare"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_pickles_are_refused_by_the_name_of_their_object(form, protocol, tmp_path, capfd):
    path, content = tmp_path / "evil.pth", {"model": {"weight": Evil()}}
    if form == "bare":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zipped")
    with pytest.raises(
        ValueError, match=r"evil.pth cannot be read .*: it holds (posix|nt).system, which"
    ) as error:
        read_checkpoint(path)
    assert str(error.value).isprintable()
    assert not re.search("weights_only|add_safe_globals|trusted", str(error.value))
    assert "executed" not in capfd.readouterr().out


def test_torchscript_is_refused_without_bad_advice(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "script.pth")
    with pytest.raises(ValueError, match=r"it holds .*Linear, which is not a plain tensor") as error:
        read_checkpoint(tmp_path / "script.pth")
    assert "weights_only" not in str(error.value)


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    torch.save({"model": {"w": torch.zeros(1 << 22)}}, tmp_path / "plain.pth")
    for name, fill in (("bomb", 0), ("packed", None)):
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as source,
            zipfile.ZipFile(tmp_path / f"{name}.pth", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                content = source.read(entry)
                is_large = len(content) > 1 << 20 and fill is None  # packed weights of a usual kind
                target.writestr(
                    entry.filename, torch.rand(1 << 22).numpy().tobytes() if is_large else content
                )
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 17
    assert read_checkpoint(tmp_path / "packed.pth")["model"]["w"].std() > 0.1
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"bomb.pth .*bytes would grow to 16,77\d,\d+ when unpacked"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints_are_read_or_refused(tmp_path, zipped):
    file, chance = tmp_path / "model.pth", random.Random(0)
    torch.save({"model": nn.Linear(2, 3).state_dict()}, file, _use_new_zipfile_serialization=zipped)
    good = file.read_bytes()
    for _ in range(300):
        content = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(min(len(content), 900))] = chance.randrange(256)
        file.write_bytes(content)
        with contextlib.suppress(ValueError):
            read_checkpoint(file)


def test_unparsable_last_checkpoint_falls_back_to_an_earlier_one(tmp_path):
    run = make(tmp_path)
    run.save("model_0000001", 1)
    run.save("model_0000002", 2)
    (tmp_path / "model_0000002.pth").write_bytes(b"(lp0\n.")  # a list, where the parser expects a number
    assert make(tmp_path).resume() == 1


def test_folder_that_is_a_file_is_explained_and_stays(tmp_path):
    (tmp_path / "file").write_text("content")
    message = r"cannot write .*a.txt \(.*\); .*file must be a folder that has room"
    with pytest.raises(OSError, match=message), atomic_write(tmp_path / "file" / "a.txt", "w") as file:
        file.write("never")
    assert (tmp_path / "file").read_text() == "content"


def test_weights_alone_cannot_be_resumed(tmp_path):
    torch.save({"model": nn.Linear(2, 3).state_dict()}, tmp_path / "released.pth")
    (tmp_path / "last_checkpoint").write_text("released.pth")
    with pytest.raises(ValueError, match=r"has no optimizer, .* set MODEL.WEIGHT to it"):
        make(tmp_path).resume()


def test_weight_with_and_without_wrapper_prefix_is_refused(tmp_path):
    torch.save({"module.a": torch.zeros(2), "a": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="expected each weight once"):
        read_checkpoint(tmp_path / "a.pth")
