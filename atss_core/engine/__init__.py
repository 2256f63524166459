"""Training, inference and the Python API."""

from atss_core.engine.detections import Detections
from atss_core.engine.elastic import TerminatedError
from atss_core.engine.inference import Timing, gather_detections, run_inference
from atss_core.engine.predictor import Predictor
from atss_core.engine.step import TrainingStep
from atss_core.engine.trainer import train

__all__ = [
    "Detections",
    "Predictor",
    "TerminatedError",
    "Timing",
    "TrainingStep",
    "gather_detections",
    "run_inference",
    "train",
]
