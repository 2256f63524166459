"""pycocotools is the referee: what is offered beside it must give its numbers."""

import numpy as np
import pytest

from atss_core.evaluation import backends, choose_backend
from atss_core.evaluation.backends import BACKENDS, VERIFIED, measure
from atss_core.utils import extras
from tests.evaluation.coco_cases import build, feed, load_golden
from tests.evaluation.made_up import KINDS, make_up

# The largest difference of a number. pycocotools adds the smallest float to a number that it divides by,
# faster_coco_eval does not.
TOLERANCES = {"hotcoco": 0.0, "faster_coco_eval": 1e-12}


def differences(first, second):
    fields = ("stats", "precision", "recall")
    for field in fields:
        assert getattr(first, field).shape == getattr(second, field).shape
    return [np.abs(getattr(first, field) - getattr(second, field)).max() for field in fields]


@pytest.mark.parametrize("library", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_equal_those_of_pycocotools(kind, library):
    pytest.importorskip(library)
    for seed in range(4):
        images, classes, annotations, detections = make_up(kind, seed)
        case = (images, classes, annotations, detections)
        errors = differences(measure(library, *case), measure("pycocotools", *case))
        assert max(errors) <= TOLERANCES[library], f"seed {seed}"


@pytest.mark.parametrize("library", TOLERANCES)
def test_orders_and_large_ids_change_nothing(library):
    pytest.importorskip(library)
    images, classes, annotations, detections = make_up("equal scores", 1)
    expected = measure("pycocotools", images, classes, annotations, detections)
    for far, further in (
        (10**15, 2**40),
        (2**63 - 100, 2**63 - 50),
        (-(10**15), -3),
    ):  # -3: negative, 0 and above
        moved = [
            [
                {**e, "image_id": e["image_id"] + far, "category_id": e["category_id"] + further}
                for e in entries
            ]
            for entries in (annotations, detections)
        ]
        measured = measure(
            library, [i + far for i in images[::-1]], [i + further for i in classes[::-1]], *moved
        )
        assert max(differences(measured, expected)) <= TOLERANCES[library]
        assert list(measured.category_ids) == [i + further for i in classes]


@pytest.mark.parametrize("library", BACKENDS)
def test_evaluator_gives_the_published_numbers_with_each_library(library):
    pytest.importorskip(library)
    coco, boxes, expected = load_golden()
    evaluator = build(coco, backend=library)
    feed(evaluator, coco, boxes)
    metrics = evaluator.evaluate()
    assert metrics.overall == pytest.approx(expected, abs=1e-6)
    assert evaluator.measured.backend == library
    other = build(coco, backend="pycocotools")
    feed(other, coco, boxes)
    for mine, theirs in zip(metrics.to_dict().values(), other.evaluate().to_dict().values(), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("library", BACKENDS)
def test_scores_that_are_not_finite_are_left_to_the_referee(library, caplog):
    pytest.importorskip(library)
    images, classes, annotations, detections = make_up("plain", 0)
    detections[0]["score"] = float("nan")
    assert measure(library, images, classes, annotations, detections).backend == "pycocotools"
    assert "not finite" in caplog.text


def pretend(monkeypatch, versions):
    """Let only these libraries be installed."""

    def version(package):
        if package not in versions:
            raise backends.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(extras, "has", lambda name: name in versions)
    monkeypatch.setattr(backends.metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({}, "pycocotools"),
        ({"faster-coco-eval": "1.8.0"}, "faster_coco_eval"),
        ({"faster-coco-eval": "1.8.0", "hotcoco": "1.12.1"}, "hotcoco"),
        ({"faster-coco-eval": "1.9.0rc1", "hotcoco": "1.2.1"}, "faster_coco_eval"),
        ({"hotcoco": "2.0.0"}, "pycocotools"),
    ],
)
def test_auto_chooses_the_fastest_in_a_version_that_was_verified(versions, expected, monkeypatch):
    pretend(monkeypatch, versions)
    assert choose_backend("auto") == expected
    assert set(VERIFIED) == set(BACKENDS) - {"pycocotools"}


def test_unknown_and_missing_libraries_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="auto, hotcoco, faster_coco_eval, pycocotools, got 'coco'"):
        choose_backend("coco")
    pretend(monkeypatch, {})
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        choose_backend("faster_coco_eval")
