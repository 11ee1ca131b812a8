"""What is fetched from the Hugging Face hub: tried again where the network or the server may only be busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from align_jax.parallel.stop import tell_stderr

T = TypeVar("T")

PAUSES = (1.0, 4.0, 10.0)  # seconds between the tries
_BUSY = (408, 425, 429, 500, 502, 503, 504)
# Parts of the names of what requests, httpx and aiohttp raise, which are not all installed.
_TRANSIENT = ("Timeout", "Connect", "ReadError", "WriteError", "RemoteProtocol", "ChunkedEncoding", "IncompleteRead")


def retried(work: Callable[[], T], what: str) -> T:
    """What `work` returns; a failure of the network is said and tried again after `PAUSES`.

    Args:
      what: that is fetched, for the line.

    Raises:
      Exception: the last one of `work`, or the first that another try does not help.
    """
    for pause in PAUSES:
        try:
            return work()
        except Exception as error:  # the hub's clients raise whatever their transport does
            if not may_pass(error):
                raise
            lines = str(error).strip().splitlines()
            tell_stderr(f"{what}: {type(error).__name__}: {lines[0] if lines else ''}; trying again in {pause:g} s")
            time.sleep(pause)
    return work()


def may_pass(error: BaseException) -> bool:
    """Whether an error is one of the network, or of a server that is busy, so that another try may do."""
    found = list(_causes(error))
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in found):
        return False
    status = next((s for one in found if (s := getattr(getattr(one, "response", None), "status_code", None))), None)
    if status is not None:
        return status in _BUSY
    named = (base.__name__ for one in found for base in type(one).__mro__)
    return any(isinstance(one, ConnectionError | TimeoutError) for one in found) or any(
        word in name for name in named for word in _TRANSIENT
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
