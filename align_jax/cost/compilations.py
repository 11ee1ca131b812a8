"""How much this process compiled, and how much of it came from the persistent compilation cache."""

from __future__ import annotations

import dataclasses

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@dataclasses.dataclass(frozen=True)
class Compilations:
    """Programs that were asked for, how many of them were read from the cache, and seconds spent on all of them."""

    programs: int = 0
    cached: int = 0
    seconds: float = 0.0

    def __sub__(self, before: Compilations) -> Compilations:
        return Compilations(self.programs - before.programs, self.cached - before.cached, self.seconds - before.seconds)

    @property
    def compiled(self) -> int:
        """Programs that the compiler had to make."""
        return self.programs - self.cached


class _Counter:
    """Adds up what JAX reports; one for the process, since listeners stay for good."""

    def __init__(self):
        self.total = Compilations()
        self.compiling = False
        jax.monitoring.register_event_duration_secs_listener(self._spent)
        jax.monitoring.register_event_listener(self._event)

    def _spent(self, name: str, seconds: float, **_: object) -> None:
        if name == _LOWERED:  # what JAX reports last before it compiles
            self.compiling = True
        if name == _COMPILED:
            self.compiling = False
            self.total = dataclasses.replace(
                self.total, programs=self.total.programs + 1, seconds=self.total.seconds + seconds
            )

    def _event(self, name: str, **_: object) -> None:
        if name == _FROM_CACHE:
            self.total = dataclasses.replace(self.total, cached=self.total.cached + 1)


_counter: _Counter | None = None


def so_far() -> Compilations:
    """What was compiled since the first call; take the difference of two."""
    return _the_counter().total


def compiling_now() -> bool:
    """Whether a program is being compiled, as far as JAX tells since the first call of `so_far`."""
    return _the_counter().compiling


def _the_counter() -> _Counter:
    global _counter
    if _counter is None:
        _counter = _Counter()
    return _counter
