"""The site builds, its generated page is current, and the worked example works as it stands."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.config import key_names
from atss_core.modeling.build import ASSIGNERS, BACKBONES, BOX_LOSSES
from tests.conftest import TINY
from tests.docs.commands import commands_of
from tests.golden import ROOT

DOCS = ROOT / "docs"
EXAMPLE = DOCS / "extending.md"
USE = (
    "from atss_core.config import load_cfg"  # with which the last block begins, which is no part of the file
)


def load_generator():
    spec = importlib.util.spec_from_file_location("make_config_reference", DOCS / "make_config_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


generator = load_generator()
SOURCE = generator.SOURCE.read_text(encoding="utf-8")


def test_reference_of_keys_is_current():
    text = generator.REFERENCE.read_text(encoding="utf-8")
    assert text == generator.make_reference(SOURCE), "run python docs/make_config_reference.py"


def test_reference_has_every_key_once():
    named = [f"{e.section}.{key}".lstrip(".") for e in generator.read_entries(SOURCE) for key in e.keys]
    # Its keys are the reader's own.
    assert sorted(named) == sorted([*key_names(), "DATASETS.REGISTER"])


def test_reference_tells_defaults_ranges_and_meanings():
    text = generator.make_reference(SOURCE)
    meaning = "Channels of every FPN level and of the head."
    assert f"| `BACKBONE_OUT_CHANNELS` | `256 * 4` | `[1, 100000]` | {meaning} |" in text
    both = "`FG_IOU_THRESHOLD`<br>`BG_IOU_THRESHOLD` | `0.5`<br>`0.4` | `[0, 1]`<br>`[0, 1]`"
    assert f"| {both} | Only for IoU" in text
    assert "| `EMA_DECAY` | `0.0` | `[0, 1)` | " in text
    assert "| `SCHEDULE` | `'step'` | `one of 'step', 'cosine'` | " in text
    assert "**new** Seed of" in text
    assert "`INPUT.MIN_SIZE_TEST`" in text


def example_blocks():
    """Return the code of the file, and of the block that uses it."""
    blocks = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)
    parts = [block for block in blocks if not block.startswith(USE)]
    assert len(parts) == len(blocks) - 1 == 5
    return "\n\n".join(parts), blocks[-1]


@pytest.fixture
def parts(monkeypatch):
    """Forget afterwards what the example registers."""
    for registry in (BACKBONES, ASSIGNERS, BOX_LOSSES):
        monkeypatch.setattr(registry, "_builders", dict(registry._builders))


def test_own_parts_are_built_and_take_a_step(parts, capsys):
    file, use = example_blocks()
    torch.manual_seed(0)
    names = {"__name__": "my_parts"}
    exec(compile(file, "my_parts.py", "exec"), names)
    exec(compile(use, "use.py", "exec"), names)
    losses = names["losses"]
    assert losses.keys() == {"loss_cls", "loss_reg", "loss_centerness"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    gradients = [p.grad for p in names["detector"].backbone.body.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert "loss_reg" in capsys.readouterr().out
    loss = names["detector"].rpn.loss
    assert type(names["detector"].backbone.body) is names["SmallBackbone"]
    assert names["BestAnchors"] in map(type, vars(loss).values())


def test_own_assigner_chooses_the_best_anchors(parts):
    file, _ = example_blocks()
    names = {"__name__": "my_parts"}
    exec(compile(file, "my_parts.py", "exec"), names)
    anchors = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 7], [40, 40, 49, 49], [100, 100, 109, 109]])
    boxes = torch.tensor([[0.0, 0, 9, 9], [40, 40, 49, 47]])
    assert names["BestAnchors"](share=0.7).match(anchors, boxes).tolist() == [0, 0, 1, -1]
    assert names["BestAnchors"](share=0.9).match(anchors, boxes).tolist() == [0, -1, 1, -1]
    assert names["BestAnchors"](share=0.7).match(anchors, boxes[:0]).tolist() == [-1] * 4


def test_own_parts_train_from_the_command_line(shapes, tmp_path):
    (tmp_path / "my_parts.py").write_text(example_blocks()[0])
    train, test = (c for c in commands_of(EXAMPLE)[0] if c.words[:2] == ["python", "my_parts.py"])
    tiny = [*TINY, "DATASETS.DATA_DIR", str(shapes), "SOLVER.MAX_ITER", "2"]
    for words in ([*train.words[1:], *tiny, "--skip-test"], test.words[1:]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    weights = read_checkpoint(tmp_path / "training_dir/my_parts/model_final.pth")["model"]
    assert "backbone.body.steps.0.0.weight" in weights


def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="pip install -e '.[docs]' builds the site")
    pytest.importorskip("mkdocstrings_handlers.python")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= pages.keys()
    assert "NUM_CLASSES" in pages["config"]
    assert "from_config" in pages["api"]
    assert "atss_core.layers.nms.nms" in pages["operators"]
    loaded = [link for page in pages.values() for link in re.findall(r"<(?:script|link|img)[^>]+>", page)]
    assert loaded
    assert not [link for link in loaded if "//" in link and 'rel="canonical"' not in link]
