"""What happens where JAX finds that processes are lost: not C++'s abort with a stack, but a word to whoever watches them.

JAX's client ends the process by `abort` when its first process is gone, at once. It takes a function to call instead, but
cannot hand a Python one its argument, which C++ answers by `std::terminate`: that is where this hooks in, and chains to what
was there for everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

from align_jax.private import private

_BAD_CAST = (b"St8bad_cast", b"N8nanobind10cast_errorE")
_kept: list[Any] = []  # what C++ calls must stay


@contextlib.contextmanager
def clients_that_tell(told: Callable[[], Any]) -> Iterator[bool]:
    """Within it, JAX's client is made so that `told` is called, in a thread of its own, where it would abort the process.

    Yields whether it is; on a system without the GNU C++ library, or with another JAX, all is as JAX does it.
    """
    module = private("clients")
    make = getattr(module, "get_distributed_runtime_client", None)
    if make is None or "missed_heartbeat_callback" not in (make.__doc__ or "") or not _hook(told):
        yield False
        return
    module.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=lambda *_: told())
    try:
        yield True
    finally:
        module.get_distributed_runtime_client = make


def _hook(told: Callable[[], Any]) -> bool:
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        replace, current = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return False
    handler = ctypes.CFUNCTYPE(None)
    current.restype = ctypes.POINTER(ctypes.c_void_p)
    replace.restype = ctypes.c_void_p
    before: list[Any] = []

    @handler
    def terminated() -> None:
        kind = current()
        if kind and ctypes.cast(kind[1], ctypes.c_char_p).value in _BAD_CAST:
            told()
        if before:
            before[0]()

    address = replace(terminated)
    if address:
        before.append(handler(address))
    _kept.append(terminated)
    return True
