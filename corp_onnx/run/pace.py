"""How a set of images goes through a session: how many calls side by side, with how many images and threads each.

A call with two threads of ONNX Runtime takes more than half of what it takes with one, since its operators wait for
each other; two calls of one thread, with half of the images each, take no more memory and leave no core idle. On a
device there is one call at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from corp_onnx.run.runtime import resolve_provider
from corp_onnx.threads import MAX_CALLS, count_cores, share_cores


@dataclass(frozen=True, slots=True)
class Pace:
    """How images go through a session.

    Attributes:
        n_calls: side by side.
        batch_size: images of a call.
        threads: of ONNX Runtime in a call; None is every core.
        n_batches: calls that are asked for together.
    """

    n_calls: int
    batch_size: int
    threads: int | None
    n_batches: int


def choose_pace(batch_size: int, fixed: int | None = None, provider: str = "cpu") -> Pace:
    """The pace at which no more than `batch_size` images are under way.

    Args:
        fixed: images that the model takes at once, where it says so; more than `batch_size` go alone.
    """
    n_batches = max(1, batch_size // fixed) if fixed else None
    n_calls = min(MAX_CALLS, count_cores(), n_batches or batch_size)
    if n_calls < 2 or resolve_provider(provider) != "CPUExecutionProvider":
        return Pace(1, fixed or batch_size, share_cores(), 1)
    threads = count_cores() // n_calls
    return Pace(n_calls, fixed or -(-batch_size // n_calls), threads, n_batches or n_calls)
