"""A session on a device with a memory of its own: runs with and without the transfers between it and the host.

Enters a `Session` and arrays on the host; leaves a `DeviceRun`, whose two functions differ in nothing but the
transfers, because both go through an IO binding of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from corp_onnx.run.runtime import OF_CUDA, explain_failure, import_runtime
from corp_onnx.run.sessions import Session

T = TypeVar("T")

DEVICES: Mapping[str, str] = dict.fromkeys(OF_CUDA, "cuda")
"""Providers with a memory of their own, and ONNX Runtime's name of it."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceRun:
    """A session bound to a batch: `run` from host memory to host memory, `resident` on the device only."""

    run: Callable[[], None]
    resident: Callable[[], None]


def bind_device(session: Session, feeds: Mapping[str, np.ndarray], device: str) -> DeviceRun:
    """The batch copied to the device, and all outputs bound.

    Args:
        device: ONNX Runtime's name of the memory, as in `DEVICES`.

    Raises:
        ModelError: the device has no room for it; either function, where ONNX Runtime fails on it.
    """
    value_type = import_runtime().OrtValue
    native = session.native

    def bind() -> tuple[dict[str, Any], Any, Any]:
        held = {name: value_type.ortvalue_from_numpy(array, device, 0) for name, array in feeds.items()}
        to_host, stays = native.io_binding(), native.io_binding()
        for binding, where in ((to_host, "cpu"), (stays, device)):
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            for output in session.outputs:
                binding.bind_output(output, where)
        return held, to_host, stays

    on_device, to_host, stays = explain_call(session, bind)

    def resident() -> None:
        native.run_with_iobinding(stays)
        stays.synchronize_outputs()

    def run() -> None:
        for name, value in on_device.items():
            value.update_inplace(feeds[name])
        native.run_with_iobinding(to_host)
        to_host.synchronize_outputs()

    return DeviceRun(lambda: explain_call(session, run), lambda: explain_call(session, resident))


def explain_call(session: Session, call: Callable[[], T]) -> T:
    """What a call of ONNX Runtime gives; its exception as a sentence."""
    try:
        return call()
    except Exception as error:  # as in Session.run
        raise explain_failure(session.what, error) from error
