"""Where metrics go: a sink a file, found by the file's name; `metrics.jsonl` and a progress line always. No jax here."""

from align_jax.training.logs.jsonl import TIMING_PREFIXES, read_metrics
from align_jax.training.logs.metrics_log import MetricsLog

__all__ = ["TIMING_PREFIXES", "MetricsLog", "read_metrics"]
