"""Time and memory of the greedy OBS at the widths of real MLPs, against the plain loop and against the machine's dgemm.

    python tools/bench_obs.py [--large] [--repeats 3]

n = 768 and 3072 are DeiT-Tiny and DeiT-Base, 5120 (--large) is ViT-H. d_out is a quarter of n. The plain loop downdates
the whole inverse and W at every removal; it is timed over its first removals and scaled up, since it does not finish in
reasonable time. `peak` is the share of the dgemm rate of this machine, measured right before, that OBS reaches on the
multiply-adds it needs (n^3 + n^2 d_out + its own smaller ones, two flops each).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.obs import BLOCK_SIZE, rank_obs

N_PLAIN_REMOVALS = 20
"""Removals of the plain loop that are timed; each costs the same."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also n = 5120: 1.1 GB, some ten seconds")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs after one warm-up; median and spread (3)")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}, float64"
    )
    print(f"block {BLOCK_SIZE}, ridge {DEFAULT_RIDGE:g}, 1 warm-up, median of {options.repeats} (least to most)\n")
    print("    n  d_out   seconds                  GFLOP   GFLOP/s   dgemm   peak   memory   plain loop")
    for n in (768, 3072, 5120) if options.large else (768, 3072):
        moments, weight = make_problem(n, n // 4)
        rank_obs(moments, weight)
        rate = measure_dgemm()
        seconds = [measure_seconds(lambda m=moments, w=weight: rank_obs(m, w)) for _ in range(options.repeats)]
        work = count_flops(n, n // 4) / 1e9
        median = statistics.median(seconds)
        spread = f"{median:7.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        memory = measure_memory(lambda m=moments, w=weight: rank_obs(m, w)) / 1e6
        plain = measure_plain(moments, weight)
        print(
            f"{n:5d}  {n // 4:5d}   {spread:24s} {work:6.1f}  {work / median:7.1f}  {rate:7.1f}"
            f"  {work / median / rate:4.0%}  {memory:5.0f} MB  {plain:6.0f} s"
        )


def make_problem(n: int, d_out: int) -> tuple[ChannelMoments, np.ndarray]:
    """Moments of rectified, correlated activations, and a random down projection."""
    rng = np.random.default_rng(0)
    n_tokens = 2 * n
    signal = rng.normal(size=(n_tokens, n // 4)) @ rng.normal(size=(n // 4, n)) / np.sqrt(n / 4)
    x = np.maximum(signal + 0.5 * rng.normal(size=(n_tokens, n)) - 0.3, 0)
    return ChannelMoments(n_tokens, x.sum(axis=0), x.T @ x), rng.normal(size=(d_out, n))


def count_flops(n: int, d_out: int, block_size: int = BLOCK_SIZE) -> float:
    """Two a multiply-add: inverse n^3 / 2, Gram of W n^2 d_out, H and G by rank updates n^3 / 2, columns in a block."""
    return 2.0 * (n**3 + n**2 * d_out + 3 * n**2 / 2 * block_size / 2)


def measure_dgemm(n: int = 2048) -> float:
    """GFLOP/s of a square float64 product, the best of five."""
    a = np.random.default_rng(0).normal(size=(n, n))
    return 2e-9 * n**3 / min(measure_seconds(lambda: a @ a) for _ in range(5))


def measure_seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_memory(function: Callable[[], object]) -> int:
    """Peak bytes allocated during one call, its inputs not counted."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def measure_plain(moments: ChannelMoments, weight: np.ndarray) -> float:
    """Seconds the plain loop would take over all n removals; see the module docstring."""
    n = weight.shape[1]
    covariance = moments.covariance
    inverse = np.linalg.inv(covariance + DEFAULT_RIDGE * np.trace(covariance) / n * np.eye(n))
    weight = weight.copy()

    def remove(j: int) -> None:
        score = np.square(weight).sum(axis=0) / inverse.diagonal()
        score.argmin()
        pivot = inverse[j, j]
        weight.__isub__(np.outer(weight[:, j], inverse[j] / pivot))
        inverse.__isub__(np.outer(inverse[:, j] / pivot, inverse[j]))
        inverse[j, j] = 1.0

    return n * statistics.median(measure_seconds(lambda j=j: remove(j)) for j in range(N_PLAIN_REMOVALS))


if __name__ == "__main__":
    main()
