"""Where metrics go: a file per sink, found by its name; `metrics.jsonl` and a progress line always. No jax here."""

from align_jax.training.logs.jsonl import TIMING_PREFIXES, read_metrics
from align_jax.training.logs.metrics_log import MetricsLog
from align_jax.training.logs.sink import Context, Sink
from align_jax.training.logs.table import find_sink

__all__ = ["TIMING_PREFIXES", "Context", "MetricsLog", "Sink", "find_sink", "read_metrics"]
