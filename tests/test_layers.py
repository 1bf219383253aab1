"""House rules that a machine can hold: imports point one way, extras are optional, and every trap has its test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import corp_onnx

PACKAGE = Path(corp_onnx.__file__).parent
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
           for p in sorted(PACKAGE.rglob("*.py"))}  # fmt: skip
EXTRAS = (
    "onnxruntime",
    "torch",
    "timm",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "cuda",
    "tritonclient",
    "onnxscript",
    "openvino",
    "altair",
    "vl_convert",
    "jinja2",
    "markupsafe",
    "pyarrow",
    "fsspec",
    "ray",
)

ORDER = (
    *("_version", "errors", "memory", "cpuinfo", "gpuinfo", "threads", "progress", "targets", "settings", "options"),
    "results",
    *("metrics", "staging", "shelf", "tensor_file", "findings", "graph", "images", "run", "blocks", "moments", "solve"),
    *("units", "calibrate", "gradients", "tokens", "rewrite", "refit", "latency", "search", "checks"),
    *(
        "inspect",
        "evaluate",
        "case",
        "analyze",
        "prune",
        "calibration",
        "forecast",
        "fit",
        "precision",
        "tensorrt",
        "bench",
        "sweep",
        "triton",
        "zoo",
        "report",
        "cli",
        "__main__",
    ),
)
"""Every room, each of which imports from those before it only (docs/architecture.md)."""

APART = (("tokens", "calibrate"), ("rewrite", "calibrate"), ("calibrate", "solve"), ("rewrite", "solve"),
         ("precision", "tensorrt"), ("tensorrt", "prune"), ("triton", "prune"), ("zoo", "prune"))  # fmt: skip
"""Rooms that do not know each other although the order would allow it: (who, whom)."""

NUMPY_ONLY = ("moments", "solve")


def room(module: str) -> str:
    """`corp_onnx.solve.mlp` -> `solve`."""
    return [*module.split("."), ""][1]


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Modules that a file imports; with their full names where it imports from the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nested = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in nested and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__", "_require"):
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def top_names(found: set[str]) -> set[str]:
    return {name.split(".")[0] for name in found}


def own(found: set[str]) -> set[str]:
    """The rooms among what is imported."""
    return {room(name) for name in found if name.startswith("corp_onnx.")}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m)])
def test_imports_point_one_way(module: str) -> None:
    """No circle between rooms: whoever imports stands further down the list."""
    assert room(module) in ORDER, f"{module}: give the new room its place in ORDER"
    above = {r for r in own(imports(MODULES[module])) if r and ORDER.index(r) > ORDER.index(room(module))}
    assert not above, f"{module} imports {sorted(above)}"


def test_no_circle_inside_a_room() -> None:
    """Modules of one room import each other in one direction as well, inside functions too."""
    arrows = {m: {n for n in imports(path) if n in MODULES and n != m} for m, path in MODULES.items()}
    arrows["corp_onnx"] = set()  # the package hands out names of its rooms when they are first used
    left = dict(arrows)
    while left:
        ready = [m for m, needed in left.items() if not needed & set(left)]
        assert ready, f"a circle among {sorted(left)}"
        left = {m: needed for m, needed in left.items() if m not in ready}


def test_every_room_of_the_order_is_there() -> None:
    assert {room(m) for m in MODULES} - {""} == set(ORDER)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in NUMPY_ONLY])
def test_the_mathematics_knows_no_onnx_and_no_files(module: str) -> None:
    outside = top_names(imports(MODULES[module])) - {"corp_onnx"} - set(sys.stdlib_module_names)
    assert outside <= {"numpy", "scipy", "jaxtyping"}
    if room(module) == "solve":
        assert not top_names(imports(MODULES[module])) & {"pathlib", "io", "os", "json", "zipfile"}


@pytest.mark.parametrize(("who", "whom"), APART)
def test_rooms_that_do_not_know_each_other(who: str, whom: str) -> None:
    for path in (p for m, p in MODULES.items() if room(m) == who):
        assert whom not in own(imports(path))


def test_nobody_imports_the_command_line() -> None:
    users = {m for m, path in MODULES.items() if "cli" in own(imports(path)) and room(m) != "cli"}
    assert users <= {"corp_onnx.__main__"}


def test_torch_only_where_models_are_exported() -> None:
    users = {
        m for m, path in MODULES.items() if {n.split(".")[0] for n in imports(path)} & {"torch", "timm", "onnxscript"}
    }
    assert {room(m) for m in users} == {"zoo", "gradients"}  # gradients: for the extra `taylor`, by a name in a call


@pytest.mark.parametrize("module", MODULES)
def test_extras_are_imported_inside_functions(module: str) -> None:
    assert not top_names(imports(MODULES[module], inside_functions=False)) & set(EXTRAS)
    ours = {"tensorrt": {"tensorrt", "tensorrt_rtx", "cuda"}, "triton": {"tritonclient"}, "run": {"openvino"},
            "images": {"pyarrow", "fsspec"}, "calibrate": {"ray"}}  # fmt: skip
    assert not top_names(imports(MODULES[module])) & set().union(*ours.values()) - ours.get(room(module), set())


CONVERTERS = ("corp_onnx.precision.fp16", "corp_onnx.precision.int8", "corp_onnx.precision.trial")
"""ONNX Runtime's own converters and quantisers open their sessions themselves."""

DEPLOYED = "corp_onnx.triton.model"
"""Runs inside a Triton server, alone."""


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "run" and m not in (*CONVERTERS, DEPLOYED)])
def test_only_one_room_runs_models(module: str) -> None:
    assert "onnxruntime" not in top_names(imports(MODULES[module]))
    source = MODULES[module].read_text(encoding="utf-8")
    assert "InferenceSession" not in source


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("units", "blocks", "")])
def test_nobody_else_asks_which_kind_a_unit_is(module: str) -> None:
    """Kinds, their changes and the two sorts of site are known in units/ and blocks/ only; all others use `Unit`."""
    named = re.compile(r"^corp_onnx\.(units(\.\w+)?\.\w+(Change|Unit|Choice)|blocks(\.\w+)?\.(Mlp|Attention))$")
    allowed = {f"corp_onnx.units.{base}" for base in ("Change", "Unit", "Choice")}
    assert {name for name in imports(MODULES[module]) if named.match(name)} - allowed == set()


def test_every_module_imports_without_any_extra() -> None:
    names = [m for m in MODULES if m != "corp_onnx.__main__"]
    program = f"""
import sys
for extra in {EXTRAS!r}:
    sys.modules[extra] = None
import importlib
for name in {names!r}:
    importlib.import_module(name)
print("all", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["all", str(len(names))]


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """The tests above can fail."""
    file = tmp_path / "a.py"
    inside = "def f():\n    import timm\n    importlib.import_module('tensorrt')\n"
    file.write_text(f"import torch.nn\nfrom corp_onnx.cli import main\n\n{inside}", encoding="utf-8")
    assert imports(file) == {"torch.nn", "corp_onnx.cli", "corp_onnx.cli.main", "timm", "tensorrt"}
    assert imports(file, inside_functions=False) == {"torch.nn", "corp_onnx.cli", "corp_onnx.cli.main"}
    assert own(imports(file)) == {"cli"}


def test_shapes_are_checked_while_the_tests_run() -> None:
    """conftest.py installs jaxtyping's hook."""
    from corp_onnx.solve.mlp import drop_mlp

    with pytest.raises(TypeCheckError):
        drop_mlp(np.zeros((3, 4)), np.zeros(5), np.arange(2))


def test_functions_are_short_and_modules_too() -> None:
    """STYLE 3, for the rooms that change graphs."""
    rooms = ("graph", "run", "blocks", "units", "rewrite", "tokens", "calibrate", "search", "refit", "checks")
    for module in (m for m in MODULES if room(m) in rooms):
        text = MODULES[module].read_text(encoding="utf-8")
        assert text.count("\n") <= 300, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 45, f"{module}.{node.name}"


@pytest.mark.long
@pytest.mark.parametrize("trap", range(1, 12))
def test_every_trap_of_the_design_has_a_test(trap: int) -> None:
    """DESIGN section 5, by number, in the docstring of a test."""
    tests = [p for p in Path(__file__).parent.rglob("test_*.py") if p.name != Path(__file__).name]
    assert any(trap in named_traps(path) for path in tests)


def named_traps(path: Path) -> set[int]:
    """The numbers behind the word Trap in the docstrings of a file: `Trap 3:`, `Traps 1 and 7:`, `Traps 1 to 9:`."""
    traps: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
        for numbers in re.findall(r"Traps? (\d+(?:(?:, | and | to )\d+)*)", said or ""):
            found = [int(n) for n in re.findall(r"\d+", numbers)]
            traps |= set(range(found[0], found[-1] + 1)) if " to " in numbers else set(found)
    return traps
