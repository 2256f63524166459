"""Do damaged inputs end in one line?

    python benchmarks/fuzz.py [--tries 2000] [--seed 0] [KIND ...]

Mutates datasets (COCO, VOC, YOLO), images, weights and settings, and gives them to the functions that the
commands use: opening, checking, loading samples, evaluation, loading weights, resuming, building a model.
Each try may succeed or end in a user error of one line. Anything else is a fault: another exception, a
message that is long or holds a traceback, more than 10 s, or more than 3 GiB. Each kind runs in a process of
its own, for its peak memory.
Faulty inputs are kept in ``training_dir/fuzz``, with the traceback, for a test.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from atss_core.apps.check.checks import check_images, quick_defects
from atss_core.checkpoint.checkpointer import Checkpointer
from atss_core.checkpoint.weights import load_initial_weights
from atss_core.cli.check import main as check
from atss_core.cli.common import USER_ERRORS, user_message
from atss_core.cli.datasets import open_dataset
from atss_core.config import key_names, load_cfg
from atss_core.data import build_train_dataset, build_train_loader
from atss_core.data.images import image_size, read_image
from atss_core.engine.build import build_inference
from atss_core.engine.evaluate import write_results
from atss_core.modeling import build_detector
from atss_core.solver import build_optimizer, build_scheduler
from atss_core.structures import BoxList

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml"
KEPT = ROOT / "training_dir" / "fuzz"
MOST_SECONDS = 10
LONGEST_MESSAGE = 2000
MOST_MEMORY = 3 * 1024  # MiB, of which importing takes 700
# Small enough to be built thousands of times.
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64", "MODEL.ATSS.NUM_CONVS", "1"),
    *("MODEL.ATSS.NUM_CLASSES", "3", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
]
# What hand-made, converted and broken files hold where something else is expected.
NASTY = [
    *(None, True, False, 0, 1, -1, 2, 10**12, 2**63, 10**40, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "0", "1", "nan", "x" * 5000, "../../etc/passwd"),
    *("\x00", "a\nb", "\x1b[2J", "\ud800", "\u202e", "螺栓", "$\\frac$", [], [[]], [1, 2], [1, 2, 3, 4]),
    *(
        [[1, 2], [3, 4]],
        [float("nan")] * 4,
        ["1", "2", "3", "4"],
        [10**30] * 4,
        [-5, -5, 1, 1],
        {},
        {"id": 1},
    ),
]
TOKENS = [
    *(b"0", b"-1", b"1e999", b"nan", b"NaN", b"Infinity", b"null", b"true", b"[", b"]" * 9, b"{", b"}", b'"'),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\t",
        b" ",
        b"<",
        b"</",
        b"&lol;",
        b"<!DOCTYPE x>",
    ),
    *(b"9" * 5000, b"[" * 5000, b"<object>", b"</annotation>", b"\\ud800", b"1,2", b"0 0.5 0.5 0.2 0.2\n"),
]


class TooLongError(BaseException):
    """A try takes too long; no ``except Exception`` may hide that."""


def mutate_bytes(content, rng):
    """Flip, cut, repeat, overwrite or insert bytes, a few times."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length] * rng.randrange(1, 20)
            case 3:
                content[at : at + length] = rng.randbytes(length)
            case 4:
                content[at:at] = rng.choice(TOKENS)
            case 5 if rng.random() < 0.2:
                del content[at:]
    return bytes(content)


def mutate_text(content, rng):
    """Replace numbers and words, which leaves the grammar whole more often than random bytes do."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        words = list(re.finditer(rb"[\w.+-]+", content))
        if words:
            word = rng.choice(words)
            new = rng.choice([*TOKENS, rng.choice(words)[0], b"-" + word[0], word[0] * 30])
            content = content[: word.start()] + new + content[word.end() :]
    return content


def mutate_tree(tree, rng):
    """Replace, remove or repeat values somewhere in nested dictionaries and lists."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        node, depth = tree, rng.choice((1, 2, 3, 3, 3, 3, 4, 5))
        while node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys)
            depth -= 1
            if depth > 0 and isinstance(node[key], (dict, list)) and node[key]:
                node = node[key]
                continue
            match rng.randrange(5):
                case 0:
                    del node[key]
                case 1 if isinstance(node, list):
                    node.append(copy.deepcopy(node[key]))
                case 2 if isinstance(node, dict):
                    node[rng.choice(("ignore", "area", "iscrowd", "rle", "id", "score", "x"))] = rng.choice(
                        NASTY
                    )
                case _:
                    node[key] = copy.deepcopy(rng.choice(NASTY))
            break
    return tree


def make_image(seed):
    """A small image with a block in it."""
    image = Image.effect_noise((160, 120), 40 + seed).convert("RGB")
    ImageDraw.Draw(image).rectangle((20, 30, 60, 70), fill=(220, 60, 40))
    return image


def is_short(error):
    """Tell whether a user error is what a command prints in one line, control characters escaped."""
    message = user_message(error)
    return 0 < len(message) <= LONGEST_MESSAGE and "Traceback" not in message


@contextlib.contextmanager
def refusal_allowed():
    """Go on after a user error, unless its message is a fault."""
    try:
        yield
    except USER_ERRORS as error:
        if not is_short(error):
            raise


class CocoKind:
    """A COCO file with four images."""

    def __init__(self, folder):
        self.images = folder / "images"
        self.images.mkdir()
        for i in range(1, 5):
            make_image(i).save(self.images / f"{i}.jpg")
        self.tree = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(1, 5)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [20, 30, 41, 41], "area": 1681}
                | {"iscrowd": 0, "segmentation": [[20, 30, 61, 30, 61, 71]]}
                for i in range(1, 5)
            ],
            "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
        }

    def write(self, folder, rng):
        """Write a mutated file; returns how to name it."""
        if rng.random() < 0.6:
            content = json.dumps(mutate_tree(self.tree, rng)).encode()
        else:
            content = mutate_text(json.dumps(self.tree).encode(), rng)
        (folder / "train.json").write_bytes(content)
        return f"{folder / 'train.json'}@{self.images}"


class VocKind:
    """A VOC folder with three images, one file mutated."""

    FILES = ("Annotations/1.xml", "Annotations/2.xml", "ImageSets/Main/train.txt")

    def __init__(self, folder):
        self.good = folder / "voc"
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (self.good / name).mkdir(parents=True)
        for i in range(1, 4):
            make_image(i).save(self.good / "JPEGImages" / f"{i}.jpg")
            box = "<xmin>21</xmin><ymin>31</ymin><xmax>61</xmax><ymax>71</ymax>"
            (self.good / "Annotations" / f"{i}.xml").write_text(
                f"<annotation><filename>{i}.jpg</filename><size><width>160</width><height>120</height>"
                f"<depth>3</depth></size><object><name>bolt</name><pose>Unspecified</pose><truncated>0"
                f"</truncated><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
            )
        (self.good / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n3\n")

    def write(self, folder, rng):
        """Write a folder with a mutated file; returns how to name it."""
        shutil.copytree(self.good, folder / "data")
        file = folder / "data" / rng.choice(self.FILES)
        file.write_bytes(mutate_text(file.read_bytes(), rng))
        return f"{folder / 'data'}@train"


class YoloKind:
    """A YOLO folder with three images, one file mutated."""

    FILES = ("labels/train/1.txt", "labels/train/2.txt", "data.yaml")

    def __init__(self, folder):
        self.good = folder / "yolo"
        for name in ("images/train", "labels/train"):
            (self.good / name).mkdir(parents=True)
        for i in range(1, 4):
            make_image(i).save(self.good / "images" / "train" / f"{i}.jpg")
            (self.good / "labels" / "train" / f"{i}.txt").write_text(
                "0 0.25625 0.42083 0.25625 0.34167\n" * i
            )
        (self.good / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames: [bolt, nut]\n")

    def write(self, folder, rng):
        """Write a folder with a mutated file; returns how to name it."""
        shutil.copytree(self.good, folder / "data")
        file = folder / "data" / rng.choice(self.FILES)
        file.write_bytes(mutate_text(file.read_bytes(), rng))
        return f"{folder / 'data'}@train"


def use_dataset(place, folder, rng):
    """Do with a dataset what check, training and evaluation do."""
    if rng.random() < 0.05:
        check(["--config-file", str(CONFIG), "--output-dir", str(folder / "check"), place])
    cfg = load_cfg(CONFIG, ["DATASETS.TRAIN", f"('{place}',)", "SOLVER.IMS_PER_BATCH", "1"])
    dataset = open_dataset(cfg, place)
    quick_defects(cfg, dataset)
    check_images(dataset)
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        scores = torch.linspace(0.9, 0.1, len(target))
        results[image_id] = BoxList(target.boxes, target.image_size, labels=target.labels, scores=scores)
    write_results(dataset, results, folder / "results")
    training = build_train_dataset(cfg)
    for index in range(len(training)):
        training[index]


class DatasetKind:
    """A dataset in a format, through check, training and evaluation."""

    def __init__(self, data, folder):
        self.data = data(folder)

    def run(self, folder, rng):
        """Use a mutated dataset."""
        use_dataset(self.data.write(folder, rng), folder, rng)


class ImageKind:
    """Image files of five formats, with EXIF data in four of them."""

    def __init__(self, folder):
        self.contents = {}
        image = make_image(0).resize((48, 32))
        exif = image.getexif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        for name, options in (
            *(("a.jpg", {"exif": exif}), ("b.png", {"exif": exif}), ("c.webp", {"exif": exif})),
            *(("d.tif", {"exif": exif}), ("e.bmp", {}), ("f.jpg", {"progressive": True})),
        ):
            stream = io.BytesIO()
            image.save(stream, Image.registered_extensions()[Path(name).suffix], **options)
            self.contents[name] = stream.getvalue()
        stream = io.BytesIO()
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16).save(stream, "TIFF")
        self.contents["g.tif"] = stream.getvalue()

    def run(self, folder, rng):
        """Read a mutated image."""
        name = rng.choice(list(self.contents))
        (folder / name).write_bytes(mutate_bytes(self.contents[name], rng))
        for read in (lambda p: read_image(p, False), image_size):
            with refusal_allowed():
                read(folder / name)
        read_image(folder / name, True)


class WeightsKind:
    """Checkpoints of PyTorch and safetensors, loaded, loaded in part, and resumed from."""

    def __init__(self, folder):
        self.cfg = load_cfg(CONFIG, TINY)
        detector = build_detector(self.cfg)
        run = self.checkpointer(folder, detector)
        run.save("model_0000001", 1)
        self.content = (folder / "model_0000001.pth").read_bytes()
        self.state = torch.load(io.BytesIO(self.content), weights_only=True)
        save_file(detector.state_dict(), folder / "a.safetensors")
        self.safetensors = (folder / "a.safetensors").read_bytes()

    def checkpointer(self, folder, detector):
        """A run in a folder."""
        optimizer = build_optimizer(self.cfg, detector)
        return Checkpointer(folder, detector, optimizer, build_scheduler(self.cfg, optimizer), ["a", "b"])

    def run(self, folder, rng):
        """Load a mutated file."""
        path = folder / "model_0000002.pth"
        choice = rng.randrange(5)
        if choice == 0:
            path.write_bytes(mutate_bytes(self.content, rng))
        elif choice == 1:
            path = folder / "a.safetensors"
            start = self.safetensors[:4000] if rng.random() < 0.7 else self.safetensors
            path.write_bytes(mutate_bytes(start, rng) + self.safetensors[len(start) :])
        elif choice == 2:
            path.write_bytes(mutate_bytes(pickle.dumps({"model": {"a": [1.0, 2.0]}}), rng))
        else:
            torch.save(self.mutate(rng), path)
        (folder / "last_checkpoint").write_bytes(
            mutate_bytes(path.name.encode(), rng) if rng.random() < 0.2 else path.name.encode()
        )
        detector = build_detector(self.cfg)
        for partial in (True, False):
            with refusal_allowed():
                load_initial_weights(detector, str(path), partial=partial)
        self.checkpointer(folder, detector).resume()

    def mutate(self, rng):
        """Replace parts of a state: tensors of other kinds, and anything else."""
        state = {**self.state, "model": dict(self.state["model"])}
        weights = state["model"]
        for _ in range(rng.choice((1, 2, 5))):
            key = rng.choice(list(weights) or [""])
            value = weights.get(key, torch.zeros(2))
            if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
                continue
            weights[key] = rng.choice(
                (
                    *(value * float("nan"), value / 0, value.int(), value.bool(), value.to(torch.complex64)),
                    *(value.half(), value.double(), value[None], value.flatten(), value[:0], value[..., :1]),
                    *(value.to_sparse(), value.to("meta"), value.t() if value.dim() == 2 else value),
                    *rng.sample(NASTY, 2),
                )
            )
        if rng.random() < 0.5:
            others = {key: value for key, value in state.items() if key != "model"}
            state = {"model": weights, **mutate_tree(others, rng)}
        return state


class SettingsKind:
    """A nonsense value at one key or two, as far as building everything."""

    NUMBERS = (
        *(0, 1, -1, 2, 7, 0.5, -0.5, 1e-320, 1e308, 10**6, 10**12, 10**40, True),
        *(float("nan"), float("inf"), float("-inf")),
    )

    def __init__(self, folder):
        data = CocoKind(folder)
        (folder / "train.json").write_text(json.dumps(data.tree))
        self.place = f"{folder / 'train.json'}@{data.images}"

    def run(self, folder, rng):
        """Build all that a training and an evaluation build."""
        data = {"DATASETS": {"TRAIN": [self.place], "TEST": [self.place]}, "OUTPUT_DIR": str(folder)}
        settings = {"_BASE_": str(CONFIG), **data}
        defaults = load_cfg(CONFIG)
        keys = rng.sample(key_names(), rng.choice((1, 1, 2)))
        for key in keys:
            *sections, name = key.split(".")
            node, default = settings, defaults
            for section in sections:
                node, default = node.setdefault(section, {}), default[section]
            node[name] = self.nonsense(default[name], rng)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        pairs = [pair for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in keys]
        cfg = load_cfg(folder / "config.yaml", [word for pair in pairs for word in pair])
        with torch.device("meta"):  # as large as the settings say, without the memory
            detector = build_detector(cfg)
        build_scheduler(cfg, build_optimizer(cfg, detector))
        build_inference(cfg, detector, torch.device("cpu"))
        loader = build_train_loader(cfg, build_train_dataset(cfg), start_iter=0, rank=0, world_size=1)
        if cfg.DATALOADER.NUM_WORKERS == 0:
            next(iter(loader))

    def nonsense(self, default, rng):
        """Return a value that often has the right type."""
        if rng.random() < 0.1:
            return rng.choice([value for value in NASTY if value != "\ud800"])
        if isinstance(default, (list, tuple)):
            elements = [*default, *rng.choices(self.NUMBERS, k=2)]
            return rng.sample(elements, rng.randrange(len(elements) + 1))
        if isinstance(default, str):
            return rng.choice(
                ("", " ", "x", "../x", "a" * 300, "\x1b[2J", "R-9999-FPN-RETINANET", "a/b", "cuda:99")
            )
        return rng.choice(self.NUMBERS)


KINDS = {
    "coco": lambda folder: DatasetKind(CocoKind, folder),
    "voc": lambda folder: DatasetKind(VocKind, folder),
    "yolo": lambda folder: DatasetKind(YoloKind, folder),
    "images": ImageKind,
    "weights": WeightsKind,
    "settings": SettingsKind,
}


def stop(number, frame):
    """End a try that takes too long."""
    raise TooLongError


def fault_of(run, folder, rng):
    """Try once; returns ("read" or "refused", nothing), or ("fault", what it is)."""
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        run(folder, rng)
    except TooLongError:
        return "fault", f"takes longer than {MOST_SECONDS} s\n{traceback.format_exc()}"
    except USER_ERRORS as error:
        return ("refused", "") if is_short(error) else ("fault", f"long message\n{traceback.format_exc()}")
    except Exception:  # what no command expects
        return "fault", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read", ""


def work(kind, tries, seed, progress):
    """Try a kind; returns its row. The number of the current try is in the file ``progress``."""
    signal.signal(signal.SIGALRM, stop)
    logging.getLogger("atss_core").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts = {"read": 0, "refused": 0, "fault": 0}
    longest, start = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "good").mkdir()
        tried = KINDS[kind](Path(root) / "good")
        for number in range(tries):
            progress.write_text(str(number))
            folder = Path(root) / "try"
            folder.mkdir()
            begin = time.perf_counter()
            with (
                open(os.devnull, "w") as null,
                contextlib.redirect_stdout(null),
                contextlib.redirect_stderr(null),
            ):
                outcome, text = fault_of(tried.run, folder, random.Random(f"{seed} {kind} {number}"))
            longest = max(longest, time.perf_counter() - begin)
            counts[outcome] += 1
            if outcome == "fault":
                shutil.copytree(folder, KEPT / f"{kind}-{number}", dirs_exist_ok=True)
                (KEPT / f"{kind}-{number}" / "fault.txt").write_text(text, errors="backslashreplace")
                print(f"{kind} {number}: {text.strip().splitlines()[-1][:150]}", file=sys.stderr)
            shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**counts, "longest": longest, "peak": peak, "seconds": time.perf_counter() - start}


def main():
    """Try all kinds, or those that are named, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    arguments = parser.parse_args()
    if arguments.worker:
        kind, progress = arguments.worker.split("@")
        row = work(kind, arguments.tries, arguments.seed, Path(progress))
        print(json.dumps(row))
        return
    print("| kind | tries | read | refused in one line | faults | longest s | peak MiB | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    num_faults = 0
    for kind in arguments.kinds or KINDS:
        progress = Path(tempfile.gettempdir()) / f"fuzz-{kind}-{os.getpid()}"
        options = ["--tries", str(arguments.tries), "--seed", str(arguments.seed)]
        command = [sys.executable, __file__, *options, "--worker", f"{kind}@{progress}"]
        try:  # a hang in compiled code hears no signal
            limit = arguments.tries * MOST_SECONDS
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
        except subprocess.SubprocessError as error:
            print(f"{kind}: {error} at try {progress.read_text()}")
            num_faults += 1
            continue
        progress.unlink()
        row = json.loads(done.stdout.splitlines()[-1])
        num_faults += row["fault"] + (row["peak"] > MOST_MEMORY)
        print(
            f"| {kind} | {arguments.tries} | {row['read']} | {row['refused']} | {row['fault']} | "
            f"{row['longest']:.1f} | {row['peak']:.0f} | {row['seconds']:.0f} |",
            flush=True,
        )
    sys.exit(1 if num_faults else 0)


if __name__ == "__main__":
    main()
