"""Whether ONNX Runtime survives a new file: opened once in a process of its own.

Its optimiser may fall over a float16 graph that is valid (1.31: NchwcTransformer, where a scalar of the graph equals
the half of a GELU), and takes the process with it. A person should read a sentence then, and no half-made file is left.
"""

from __future__ import annotations

import sys
from pathlib import Path

from corp_onnx.results import CheckResult
from corp_onnx.run.child import run_child

PROGRAM = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def check_loading(path: Path) -> CheckResult:
    """ONNX Runtime opens the file on a CPU, with every optimisation, and lives; what it says of it is not judged."""
    done = run_child([sys.executable, "-c", PROGRAM, str(path)])
    if done.returncode >= 0:
        return CheckResult("loading", True, None, None, "ONNX Runtime opens it with every optimisation")
    return CheckResult("loading", False, None, None, f"ONNX Runtime crashes on it (signal {-done.returncode})")
