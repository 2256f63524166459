"""The site builds, its generated page is current, and the worked example works as it stands."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.config import key_names, load_cfg
from atss_core.modeling import build, build_detector
from atss_core.modeling.registry import Registry
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
    components = [block for block in blocks if not block.startswith(USE)]
    assert len(components) == len(blocks) - 1 == 10
    return "\n\n".join(components), blocks[-1]


REGISTRIES = {name: value for name, value in vars(build).items() if isinstance(value, Registry)}


@pytest.fixture
def components(monkeypatch):
    """The names in the example file; what it registers is forgotten afterwards."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "builders", dict(registry.builders))
    names = {"__name__": "my_components"}
    exec(compile(example_blocks()[0], "my_components.py", "exec"), names)
    return names


def test_own_component_of_each_kind_is_listed_and_registered(components):
    page = EXAMPLE.read_text(encoding="utf-8")
    assert set(REGISTRIES) == set(re.findall(r"\| `([A-Z_]+)` \|", page))
    for name in REGISTRIES:
        assert f"@{name}.register(" in page


def test_own_components_are_built_and_take_a_step(components, capsys):
    torch.manual_seed(0)
    exec(compile(example_blocks()[1], "use.py", "exec"), components)
    losses = components["losses"]
    assert losses.keys() == {"loss_cls", "loss_reg", "loss_centerness", "loss_size"}
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    detector = components["detector"]
    gradients = [p.grad for p in detector.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    for part in (detector.backbone.body, detector.backbone.fpn, detector.rpn.head):
        assert any(p.grad.abs().sum() > 0 for p in part.parameters())
    assert "loss_size" in capsys.readouterr().out
    criterion = detector.criterion
    built = {
        "SmallBackbone": detector.backbone.body,
        "BottomUpNeck": detector.backbone.fpn,
        "SharedHead": detector.rpn.head,
        "BestAnchors": criterion.assigner,
        "RegularizedLoss": criterion,
        "DistanceLoss": criterion.box_loss,
        "CornerCoder": criterion.box_loss.box_coder,
    }
    assert all(type(component) is components[name] for name, component in built.items())
    assert detector.postprocess.box_coder is criterion.box_loss.box_coder
    assert detector.rpn.head.tower[1].num_groups == 1
    assert len(detector.eval()(components["images"])) == 1


def test_own_norm_reaches_a_resnet(components):
    norms = ["MODEL.RESNETS.TRANS_FUNC", "BasicBlockWithLN", "MODEL.RESNETS.STEM_FUNC", "StemWithLN"]
    body = build_detector(load_cfg("atss_R_18_shapes", norms)).backbone.body
    assert body.stem.bn1.num_groups == body.layer1[0].bn1.num_groups == 1


def test_own_box_coder_decodes_what_it_encodes(components):
    coder = components["CornerCoder"]()
    boxes, anchors = torch.tensor([[[3.0, 5, 40, 60]], [[0.0, 0, 9, 7]]])
    assert coder.decode(coder.encode(boxes, anchors), anchors).tolist() == boxes.tolist()


def test_own_assigner_chooses_the_best_anchors(components):
    anchors = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 7], [40, 40, 49, 49], [100, 100, 109, 109]])
    boxes = torch.tensor([[0.0, 0, 9, 9], [40, 40, 49, 47]])
    assigner = components["BestAnchors"]
    assert assigner(share=0.7).match(anchors, boxes).tolist() == [0, 0, 1, -1]
    assert assigner(share=0.9).match(anchors, boxes).tolist() == [0, -1, 1, -1]
    assert assigner(share=0.7).match(anchors, boxes[:0]).tolist() == [-1] * 4


def test_own_components_train_from_the_command_line(shapes, tmp_path):
    (tmp_path / "my_components.py").write_text(example_blocks()[0])
    train, test = (c for c in commands_of(EXAMPLE)[0] if c.words[:2] == ["python", "my_components.py"])
    tiny = [*TINY, "DATASETS.DATA_DIR", str(shapes), "SOLVER.MAX_ITER", "2", "SOLVER.GRAD_ACCUM_STEPS", "2"]
    for arguments in ([*train.words[1:], *tiny, "--skip-test"], test.words[1:]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    weights = read_checkpoint(tmp_path / "training_dir/my_components/model_final.pth")["model"]
    assert {
        "backbone.body.steps.0.0.weight",
        "backbone.fpn.bottom_up.0.weight",
        "rpn.head.tower.0.weight",
    } <= weights.keys()


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
