"""Weights to start training from: checkpoints, and ImageNet bodies in the Caffe2 layout of Detectron."""

from __future__ import annotations

import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atss_core.config.catalog import find_weights
from atss_core.utils import dist
from atss_core.utils.checkpoint import load_weights_strictly, read_checkpoint

logger = logging.getLogger(__name__)

# What a .pkl of arrays may refer to; anything else in it is refused. The module of the two functions
# has moved between versions of NumPy, so they are taken from what pickles use.
_REBUILD_ARRAY, _REBUILD_SCALAR = np.array(0).__reduce__()[0], np.float32(0).__reduce__()[0]
_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy.core.multiarray", "scalar"): _REBUILD_SCALAR,
    ("numpy._core.multiarray", "scalar"): _REBUILD_SCALAR,
}


def load_initial_weights(detector: nn.Module, source: str) -> None:
    """Load what MODEL.WEIGHT names.

    Args:
        detector: receives the weights.
        source: empty keeps the fresh weights; ``catalog://NAME`` or a ``.pkl`` file loads an ImageNet body;
            anything else is the path of a checkpoint, which must fit exactly.

    Raises:
        ValueError: if the weights cannot be had, cannot be read or do not fit.
        FileNotFoundError: if there is no such file.
    """
    if not source:
        logger.info("Starting from random weights (MODEL.WEIGHT is empty)")
    elif source.startswith("catalog://"):
        load_body(detector, fetch(find_weights(source.removeprefix("catalog://"))))
    elif source.endswith(".pkl"):
        load_body(detector, Path(source))
    else:
        load_weights_strictly(detector, read_checkpoint(Path(source))["model"], source)
        logger.info("Loaded %s", source)


def fetch(url: str) -> Path:
    """Return the cached copy of a file, downloading it with a progress bar if it is not there yet.

    The cache is ``$ATSS_CACHE``, by default ``~/.cache/atss``.

    Raises:
        ValueError: if the download fails; the message says where to put the file by hand.
    """
    folder = Path(os.environ.get("ATSS_CACHE", Path.home() / ".cache" / "atss"))
    path = folder / url.rsplit("/", 1)[-1]
    if dist.is_local_main() and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s", url)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise ValueError(
                f"cannot download {url} ({error}); put the file at {path} by hand, or start from random "
                f"weights with MODEL.WEIGHT ''"
            ) from error
    dist.barrier()
    return path


def load_body(detector: nn.Module, path: Path) -> None:
    """Load ImageNet weights in the Caffe2 layout into ``detector.backbone.body``.

    Every weight of the body must be there, except deformable offsets, which ImageNet models do not have, and
    the statistics of fixed batch norms, which these files hold folded into weight and bias.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or does not fit the body.
    """
    body: nn.Module = detector.get_submodule("backbone.body")
    weights = {body_key(blob, body): value for blob, value in read_caffe2(path).items()}
    own = body.state_dict()
    optional = (".offset.weight", ".offset.bias", ".running_mean", ".running_var", ".num_batches_tracked")
    missing = [key for key in own if key not in weights and not key.endswith(optional)]
    wrong = [k for k, v in own.items() if k in weights and weights[k].shape != v.shape]
    if missing or wrong:
        raise ValueError(
            f"{path} does not fit the body of this configuration: {len(missing)} weights missing "
            f"({', '.join(missing[:3])}), {len(wrong)} of another shape ({', '.join(wrong[:3])})"
        )
    body.load_state_dict({key: weights.get(key, value) for key, value in own.items()})
    logger.info("Loaded the body (%d tensors) from %s", len(own.keys() & weights.keys()), path)


def body_key(blob: str, body: nn.Module) -> str:
    """Translate a Caffe2 blob name, such as ``res3_0_branch2b_bn_s``, to a key of the body."""
    name = blob
    for pattern, replacement in (
        (r"^conv1_", "stem.conv1_"),
        (r"^res_conv1_bn_", "stem.bn1_"),
        (r"^res(\d)_(\d+)_", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
        (r"branch1_bn_", "downsample.1_"),
        (r"branch1_", "downsample.0_"),
        (r"branch2([abc])_bn_", lambda m: f"bn{'abc'.index(m[1]) + 1}_"),
        (r"branch2([abc])_", lambda m: f"conv{'abc'.index(m[1]) + 1}_"),
        (r"_(w|s)$", ".weight"),
        (r"_b$", ".bias"),
    ):
        name = re.sub(pattern, replacement, name)
    deformable = name.replace(".conv2.", ".conv2.conv.")
    return deformable if deformable in body.state_dict() else name


def read_caffe2(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a Detectron ``.pkl`` without running what it may contain.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but arrays and plain containers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set MODEL.WEIGHT to an existing file")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as Caffe2 weights: {error}") from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        raise ValueError(f"{path} holds no Caffe2 blobs, but a {type(content).__name__}")
    return {str(k): torch.from_numpy(v.copy()) for k, v in blobs.items() if isinstance(v, np.ndarray)}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays and plain containers, and refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
