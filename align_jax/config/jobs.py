"""What each job needs of a config, which files it reads, and which sections matter to it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Needs:
    """Of one job.

    Attributes:
      requires: sections and keys that must be given.
      files: keys that name what it reads in any case: files or folders, unless they are hub ids.
      own: sections that are about this job above all. reads: further ones that it reads.
    """

    requires: tuple[str, ...]
    files: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


_EVERY = ("run", "model", "data", "objective", "mesh", "log")
JOBS = {
    "train": Needs(
        requires=("model", "data.train", "objective"),
        files=("data.train", "data.eval", "data.eval_text", "model.path", "reference.path"),
        own=(
            *("run", "model", "data", "objective", "optimizer", "train", "checkpoint", "reference", "mesh", "log"),
            *("evaluate", "rounds", "generate"),
        ),
    ),
    "evaluate": Needs(
        requires=("run.dir", "model", "data.eval"),
        files=("data.eval", "data.eval_text", "model.path", "reference.path"),
        own=("evaluate",),
        reads=(*_EVERY, "reference"),
    ),
    "generate": Needs(
        requires=("model", "generate.prompts", "generate.output"),
        files=("generate.prompts",),
        own=("generate",),
        reads=_EVERY,
    ),
    "score": Needs(
        requires=("score.input", "score.output"),
        files=("score.input", "score.reward_model"),
        own=("score",),
        reads=(*_EVERY, "reference"),
    ),
    "data check": Needs(
        requires=(),
        files=("data.train", "data.eval"),
        own=("data",),
        reads=("model", "objective", "run", "train", "log"),
    ),
    "data convert": Needs(requires=(), files=("data.train",), own=("data",), reads=("model", "score", "mesh", "log")),
    "data beliefs": Needs(
        requires=(), files=("data.train",), own=("data",), reads=("model", "evaluate", "score", "run", "mesh", "log")
    ),
    "bench": Needs(requires=("model", "objective"), own=("bench",), reads=(*_EVERY, "optimizer", "train")),
    "compile": Needs(requires=("model", "objective"), reads=("model", "data", "objective", "optimizer", "mesh", "train")),
}
