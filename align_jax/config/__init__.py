"""The typed config: sections (one frozen dataclass each), where their values come from, and putting them together."""

from align_jax.config.load import Config, load_config
from align_jax.config.source import parse_overrides

__all__ = ["Config", "load_config", "parse_overrides"]
