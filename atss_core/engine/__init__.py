"""Training, inference and the Python API."""

from atss_core.engine.inference import Timing, run_inference
from atss_core.engine.predictor import Predictor
from atss_core.engine.trainer import train

__all__ = ["Predictor", "Timing", "run_inference", "train"]
