"""trtexec, TensorRT's own command-line tool, where its Python API is not there: arguments in, what it printed out.

Enters a `Source` with its shapes and settings; leaves a `Summary` of what trtexec measured on the engine it wrote. Its
lines begin with a time and a severity; they are told apart by what follows:

    &&&& RUNNING TensorRT.trtexec [TensorRT v101600] ...     two digits each for minor and patch
    [time] [E] ...                                           an error; the first is the reason of the rest
    [time] [I] Throughput: 2000 qps                          queries (batches) in a second
    [time] [I] Latency: min = 1 ms, ..., median = 2 ms, percentile(99%) = 3 ms
    &&&& PASSED TensorRT.trtexec ...                         or FAILED
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corp_onnx.errors import CheckFailedError, MissingExtraError
from corp_onnx.run.child import run_child
from corp_onnx.tensorrt.blueprint import EngineSettings, Shapes, Source

NAME = "trtexec"
USUAL_PLACES = (Path("/usr/src/tensorrt/bin"), Path("/opt/tensorrt/bin"), Path("/usr/local/tensorrt/bin"))
"""Where NVIDIA's packages and containers put it, mostly outside of PATH."""

FIRST_TYPED = 11
"""Major version of TensorRT from which networks are strongly typed only: a program can not be asked what it offers."""

SEVERITIES = ("V", "I", "W", "E", "F")
LATENCIES = ("Latency", "GPU Compute Time", "Enqueue Time", "H2D Latency", "D2H Latency")


@dataclass(frozen=True, slots=True)
class TrtexecTime:
    """One line of the summary, in seconds; percentiles as (share in percent, seconds)."""

    name: str
    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What trtexec printed.

    Attributes:
        version: of TensorRT, as 10.16.0.
        gpu: the device it ran on, as it names it.
        passed: whether it says so.
        errors: its error lines, in order.
        throughput: batches in a second, or None without a measurement.
        times: latency (transfers included), computing alone, and the rest; empty without a measurement.
    """

    version: str
    gpu: str
    passed: bool
    errors: tuple[str, ...]
    throughput: float | None
    times: tuple[TrtexecTime, ...]


def find_trtexec(path: Path | None) -> Path:
    """The tool: where the person says (a file, or a folder that holds it), on PATH, or where NVIDIA puts it.

    Raises:
        MissingExtraError: it is nowhere.
    """
    if path is not None:
        candidate = path / NAME if path.is_dir() else path
        if not candidate.is_file():
            raise MissingExtraError(f"{candidate}: there is no trtexec; give the path of TensorRT's command-line tool.")
        return candidate.absolute()  # a bare name would be looked for on PATH
    found = shutil.which(NAME)
    candidates = [Path(found)] if found else [place / NAME for place in USUAL_PLACES]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = ", ".join(str(place) for place in USUAL_PLACES)
    raise MissingExtraError(
        f"trtexec is neither on PATH nor in {places}: install TensorRT (its tar file or NVIDIA's container has the "
        "tool), or give its path, --trtexec PATH."
    )


def list_arguments(
    source: Source, shapes: Sequence[Shapes], settings: EngineSettings, flags: Sequence[str], plan: Path,
    timing_cache: Path | None,
) -> list[str]:  # fmt: skip
    """Arguments that build the engine that `deploy.tensorrt` would build, and measure it."""
    arguments = [f"--onnx={source.path}", f"--saveEngine={plan}"]
    arguments += [f"--{flag.lower()}" for flag in flags] or ["--stronglyTyped"]
    for option, which in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum")):
        if shapes:
            each = (f"{one.name}:{'x'.join(map(str, getattr(one, which)))}" for one in shapes)
            arguments.append(f"--{option}Shapes={','.join(each)}")
    if settings.workspace is not None:
        arguments.append(f"--memPoolSize=workspace:{settings.workspace}")
    if timing_cache is not None:
        arguments.append(f"--timingCacheFile={timing_cache}")
    return arguments


def run_trtexec(tool: Path, arguments: Sequence[str], source: Source, plan: Path) -> Summary:
    """Run it to its end.

    Raises:
        MissingExtraError: the file is no program.
        CheckFailedError: it failed, or wrote no engine.
    """
    try:
        done = run_child([str(tool), *arguments], stderr=subprocess.STDOUT)
    except OSError as error:
        raise MissingExtraError(f"{tool}: can not be run ({error.strerror}).") from error
    summary = parse_output(done.stdout)
    if done.returncode or not summary.passed or not plan.is_file():
        reason = summary.errors[0].rstrip(". ") if summary.errors else f"exit code {done.returncode}"
        raise CheckFailedError(f"{source.path}: trtexec {summary.version} failed ({reason}).")
    return summary


def probe_precisions(tool: Path) -> tuple[frozenset[str], str]:
    """The precisions that it takes a flag for, and what it is called; it says its version before anything else."""
    try:
        done = run_child([str(tool), "--help"])
    except OSError as error:
        raise MissingExtraError(f"{tool}: can not be run ({error.strerror}).") from error
    version = parse_output(done.stdout).version
    typed = int(version.split(".")[0] or 0) >= FIRST_TYPED
    return frozenset() if typed else frozenset({"FP16", "INT8"}), f"TensorRT {version}"


def parse_output(text: str) -> Summary:
    """What it printed, as values."""
    version, gpu, passed, throughput = "", "", False, None
    errors: list[str] = []
    times: list[TrtexecTime] = []
    for line in text.splitlines():
        severity, message = _split_line(line)
        name, _, rest = message.partition(": ")
        if line.startswith("&&&& "):
            version = version or _read_version(line)
            passed = line.startswith("&&&& PASSED")
        elif severity == "E" and message:
            errors.append(message)
        elif name == "Selected Device":
            gpu = rest
        elif name == "Throughput":
            throughput = float(rest.split()[0])
        elif name in LATENCIES and rest.startswith("min = "):
            times.append(_read_time(name, rest))
    return Summary(version, gpu, passed, tuple(errors), throughput, tuple(times))


def _split_line(line: str) -> tuple[str, str]:
    """(severity, message) of `[time] [I] message`; some versions leave the time out."""
    severity, message = "", line
    while message.startswith("[") and "]" in message and not severity:
        mark, _, message = message[1:].partition("]")
        severity = mark if mark in SEVERITIES else ""
        message = message.lstrip()
    return severity, message.strip()


def _read_version(line: str) -> str:
    """10.16.0 of `... [TensorRT v101600] ...`."""
    digits = line.partition("[TensorRT v")[2].partition("]")[0]
    if not digits.isdecimal() or len(digits) < 4:
        return ""
    if len(digits) == 4:  # up to version 9: 8601 is 8.6.1
        return f"{digits[0]}.{digits[1]}.{int(digits[2:])}"
    return f"{digits[:-4]}.{int(digits[-4:-2])}.{int(digits[-2:])}"


def _read_time(name: str, text: str) -> TrtexecTime:
    """`min = 1 ms, max = 2 ms, ..., percentile(90%) = 1.9 ms` in seconds."""
    values = dict(_read_pairs(text))
    percentiles = tuple(
        (float(key.removeprefix("percentile(").removesuffix("%)")), value)
        for key, value in values.items()
        if key.startswith("percentile(")
    )
    return TrtexecTime(name, values["min"], values["max"], values["mean"], values["median"], percentiles)


def _read_pairs(text: str) -> Iterator[tuple[str, float]]:
    for pair in text.split(", "):
        key, _, value = pair.partition(" = ")
        yield key, float(value.split()[0]) / 1e3
