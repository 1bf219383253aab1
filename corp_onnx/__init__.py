"""Make a Vision Transformer that exists only as an ONNX file smaller and faster: no labels, gradients or fine-tuning.

    prune_model      a model and images -> a smaller model and its report
    analyze_model    a model and images -> how redundant its units are, and how pruning depends on the images
    sweep_model      a model and images -> the same in many sizes, and the curve through them
    forecast_model   a model, images and a budget -> what prune_model would do
    inspect_model    a model -> its blocks and units, and what was not recognised
    evaluate_models  models and images -> accuracy, agreement, KL
    convert_model    a model -> the same in float16 or 8-bit integers
    fit_model        a model -> the same in the form that a runtime wants
    bench_models     models -> latency, throughput, speed-up
    build_engine     a model -> a TensorRT engine (extra: tensorrt-rtx or tensorrt)
    export_model     a timm model -> an ONNX file (extra: export)
    write_triton_repository  models -> folders that a Triton server loads (extra: triton)

Each verb of the command line is one of these functions, and takes its options by the same names: `macs=0.6` is `--macs
0.6`. What it returns has a short `repr`, a table for notebooks, and `to_json()`; `progress` is a function (stage, done,
total), or a `Run` with an estimate of the whole. Names are loaded when they are first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from corp_onnx._version import __version__

if TYPE_CHECKING:
    from corp_onnx.analyze import Analysis, analyze_model
    from corp_onnx.bench.bench import bench_models
    from corp_onnx.bench.values import BenchResult
    from corp_onnx.errors import CorpOnnxError
    from corp_onnx.evaluate import Evaluation, evaluate_models
    from corp_onnx.fit import FitResult, fit_model
    from corp_onnx.forecast import Forecast, forecast_model
    from corp_onnx.images import open_images
    from corp_onnx.images.recipe import Recipe
    from corp_onnx.inspect import inspect_model
    from corp_onnx.latency.turns import Schedule
    from corp_onnx.options import choose_settings
    from corp_onnx.precision.conversion import ConvertResult, ConvertSettings
    from corp_onnx.precision.convert import convert_model
    from corp_onnx.progress import Moment, Run
    from corp_onnx.prune import prune_model
    from corp_onnx.results import Inspection, PruneResult, Result
    from corp_onnx.settings import BEST, PAPER, Budget, Fractions, Method, Preprocessing, PruneSettings, Threshold
    from corp_onnx.sweep import Sweep, SweepSettings, sweep_model
    from corp_onnx.tensorrt.blueprint import EngineSettings
    from corp_onnx.tensorrt.engine import EngineResult, build_engine
    from corp_onnx.triton.config import TritonSettings
    from corp_onnx.triton.repository import TritonRepository, write_triton_repository
    from corp_onnx.zoo.export import ExportResult, ExportSettings, export_model

_HOMES = {
    "Threshold": "settings",
    "Method": "settings",
    "Fractions": "settings",
    "PAPER": "settings",
    "BEST": "settings",
    "Analysis": "analyze",
    "BenchResult": "bench.values",
    "Budget": "settings",
    "ConvertResult": "precision.conversion",
    "ConvertSettings": "precision.conversion",
    "CorpOnnxError": "errors",
    "EngineResult": "tensorrt.engine",
    "EngineSettings": "tensorrt.blueprint",
    "Evaluation": "evaluate",
    "ExportResult": "zoo.export",
    "ExportSettings": "zoo.export",
    "Inspection": "results",
    "Moment": "progress",
    "Preprocessing": "settings",
    "PruneResult": "results",
    "PruneSettings": "settings",
    "Recipe": "images.recipe",
    "Result": "results",
    "Run": "progress",
    "Schedule": "latency.turns",
    "Sweep": "sweep",
    "SweepSettings": "sweep",
    "TritonRepository": "triton.repository",
    "TritonSettings": "triton.config",
    "analyze_model": "analyze",
    "bench_models": "bench.bench",
    "build_engine": "tensorrt.engine",
    "choose_settings": "options",
    "convert_model": "precision.convert",
    "evaluate_models": "evaluate",
    "export_model": "zoo.export",
    "FitResult": "fit",
    "Forecast": "forecast",
    "fit_model": "fit",
    "forecast_model": "forecast",
    "inspect_model": "inspect",
    "open_images": "images",
    "prune_model": "prune",
    "sweep_model": "sweep",
    "write_triton_repository": "triton.repository",
}

__all__ = [
    "BEST",
    "PAPER",
    "Analysis",
    "BenchResult",
    "Budget",
    "ConvertResult",
    "ConvertSettings",
    "CorpOnnxError",
    "EngineResult",
    "EngineSettings",
    "Evaluation",
    "ExportResult",
    "ExportSettings",
    "FitResult",
    "Forecast",
    "Fractions",
    "Inspection",
    "Method",
    "Moment",
    "Preprocessing",
    "PruneResult",
    "PruneSettings",
    "Recipe",
    "Result",
    "Run",
    "Schedule",
    "Sweep",
    "SweepSettings",
    "Threshold",
    "TritonRepository",
    "TritonSettings",
    "__version__",
    "analyze_model",
    "bench_models",
    "build_engine",
    "choose_settings",
    "convert_model",
    "evaluate_models",
    "export_model",
    "fit_model",
    "forecast_model",
    "inspect_model",
    "open_images",
    "prune_model",
    "sweep_model",
    "write_triton_repository",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'corp_onnx' has no attribute '{name}'")
    return getattr(import_module(f"corp_onnx.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
