"""Configuration: every key with its default, loaded from YAML and command-line overrides."""

from atss_core.config.defaults import get_cfg
from atss_core.config.load import load_cfg

__all__ = ["get_cfg", "load_cfg"]
