"""Configuration: every key with its default, loaded from YAML and command-line overrides."""

from atss_core.config.defaults import checked, get_cfg
from atss_core.config.load import is_given, key_names, load_cfg, override

__all__ = ["checked", "get_cfg", "is_given", "key_names", "load_cfg", "override"]
