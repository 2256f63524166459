"""Training, evaluation, inference and the Python API."""

from atss_core.engine.build import evaluate_detector, load_detector, train_detector
from atss_core.engine.detections import Detections
from atss_core.engine.elastic import TerminatedError
from atss_core.engine.inference import Timing, gather_detections, run_inference
from atss_core.engine.predictor import Predictor
from atss_core.engine.step import TrainingStep

__all__ = [
    "Detections",
    "Predictor",
    "TerminatedError",
    "Timing",
    "TrainingStep",
    "evaluate_detector",
    "gather_detections",
    "load_detector",
    "run_inference",
    "train_detector",
]
