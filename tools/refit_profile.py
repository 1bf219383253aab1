"""What the refit and the weights of tokens take in a whole run of `prune`, beside plain inference over the same images.

    OPENBLAS_CORETYPE=SkylakeX PYTHONPATH=CHECKOUT .venv/bin/python tools/refit_profile.py tiny.onnx --calib photos/

Both are timed where the search calls them, so that the program measures any checkout that PYTHONPATH names; processor
seconds of all threads stand beside wall time, since a machine that others use stretches the second only. The wait of
ONNX Runtime's threads for each other counts as processor time: plain inference is with one of them, two calls side by
side, as both streams of the refit are.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import corp_onnx
import corp_onnx.refit.walk as walk
import corp_onnx.search.search as search
from corp_onnx.images import Images
from corp_onnx.prune import prune_model
from corp_onnx.run.sessions import open_session
from corp_onnx.threads import few_blas_threads

PARTS = ("read_data", "advance_dense", "advance_model", "choose_ridge", "refit_linear")
"""Functions of the walk that are timed by themselves, where the checkout has them; the rest are sums and rows."""

HALF_BATCH = 4
"""Images of a call, two of which go side by side."""


class Clock:
    """Wall and processor seconds by what was timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    def watch(self, module: Any, name: str, before: Callable[..., object] | None = None) -> None:
        """Time a function of a module from now on."""
        function = getattr(module, name, None)
        if function is None:
            return

        def timed(*args: Any, **options: Any) -> Any:
            if before is not None:
                before(*args)
            wall, cpu = time.perf_counter(), time.process_time()
            found = function(*args, **options)
            spent = self.seconds.get(name, (0.0, 0.0))
            self.seconds[name] = spent[0] + time.perf_counter() - wall, spent[1] + time.process_time() - cpu
            return found

        setattr(module, name, timed)


def main() -> None:
    """Run and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=int, help="images at the most (all)")
    parser.add_argument("--macs", type=float, default=0.617)
    args = parser.parse_args()
    clock, fitted = Clock(), list[int]()

    def infer(_graph: Any, _walk: Any, _changes: Any, _pruned: Any, images: Images, *_: Any) -> None:
        """The dense model over the images of the refit, decoded before; the second time is timed."""
        session = open_session(args.model, threads=1)
        batches = [feeds for feeds, _ in session.stream(images, HALF_BATCH)]
        fitted.append(images.n_images)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                wall, cpu = time.perf_counter(), time.process_time()
                list(pool.map(lambda feeds: session.run(None, feeds), batches))
                clock.seconds["plain inference"] = time.perf_counter() - wall, time.process_time() - cpu

    for name in PARTS:
        clock.watch(walk, name)
    clock.watch(search, "weigh_stops")
    clock.watch(search, "refit_changes", before=infer)
    with tempfile.TemporaryDirectory() as folder, few_blas_threads():
        prune_model(args.model, args.calib, Path(folder) / "pruned.onnx", macs=args.macs, n_images=args.images)
    print(f"{Path(corp_onnx.__file__).parent.parent}, {fitted[-1]} images\n")
    print("| | wall s | processor s | over plain, processor |\n|---|---|---|---|")
    whole = clock.seconds["plain inference"][1]
    for name, (wall, cpu) in clock.seconds.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {cpu / whole:.2f} |")


if __name__ == "__main__":
    main()
