"""Datasets that the tests make for themselves."""

import json
import logging
import resource
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from atss_core.data import write_shapes
from tests.golden import ROOT

QUICK = ROOT / "configs" / "quick" / "atss_R_18_shapes.yaml"

# Small enough to train a few iterations in a second.
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64", "MODEL.ATSS.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_RANGE_TRAIN", "(48, 64)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *(
        "SOLVER.IMS_PER_BATCH",
        "4",
        "SOLVER.MAX_ITER",
        "6",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "SOLVER.LOG_PERIOD",
        "2",
    ),
    *("SOLVER.STEPS", "(4,)", "SOLVER.WARMUP_ITERS", "2", "TEST.IMS_PER_BATCH", "4"),
]


@pytest.fixture(autouse=True)
def restored_logging():
    """Undo what a command does to the logger, which would print into other tests."""
    yield
    logger = logging.getLogger("atss_core")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def exact_float32():
    """Keep CUDA from rounding factors to TF32, which golden numbers would show."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The folder of a small "shapes" dataset, as DATASETS.DATA_DIR."""
    folder = tmp_path_factory.mktemp("datasets")
    write_shapes(folder / "shapes", num_train=24, num_val=8, progress=False)
    return folder


@pytest.fixture
def tiny(shapes, tmp_path):
    """Overrides of the quick configuration for a run of seconds in ``tmp_path / "run"``."""
    return [*TINY, "DATASETS.DATA_DIR", str(shapes), "OUTPUT_DIR", str(tmp_path / "run")]


@pytest.fixture
def own_shapes(tmp_path):
    """A "shapes" dataset that a test may spoil, with a function that rewrites its training annotations."""
    folder = tmp_path / "own"
    write_shapes(folder / "shapes", num_train=8, num_val=4, progress=False)
    file = folder / "shapes" / "annotations" / "train.json"

    def edit(change):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return folder, edit


@pytest.fixture
def images(tmp_path):
    """A folder with two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (80, 60), "red").save(folder / "a.jpg")
    Image.new("L", (60, 80), 128).save(folder / "b.png")
    return folder


@contextmanager
def small_disk():
    """Let no file grow beyond 100 bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
