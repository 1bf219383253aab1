"""timm's models: a name, and perhaps a checkpoint, to a PyTorch module in evaluation mode and what timm knows of it.

Enters timm itself, because only `export.py` imports it; leaves a `ZooModel`. A name that timm does not know, weights
that do not fit and a hub that does not answer are told apart here, each with what a person can do next.
"""

from __future__ import annotations

import difflib
import importlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corp_onnx.errors import InputError, OptionError
from corp_onnx.images.processors import parse_timm
from corp_onnx.images.recipe import FILTERS, Recipe

HUB_SECONDS = 10.0
"""How long the hub may take to answer at all; timm's own attempts last a minute without a network."""

HUB_ADDRESS = ("hf-hub:", "hf_hub:")
"""How timm spells a model that only the hub knows."""

N_NAMED = 3
"""Names that an error text lists of many."""

INSTEAD = "Give local weights with --checkpoint, or --no-pretrained for random ones."


@dataclass(frozen=True, slots=True, eq=False)
class ZooModel:
    """A model and what is known of it.

    Attributes:
        module: the PyTorch module, in evaluation mode, without gradients.
        weights: where they came from, for the report.
        input_size: (channels, height, width).
        recipe: the preprocessing; None for inputs that are no photographs.
        labels: the class names, empty where timm knows none.
        warnings: what a person should know, one sentence each.
    """

    module: Any
    weights: str
    input_size: tuple[int, int, int]
    recipe: Recipe | None
    labels: tuple[str, ...]
    warnings: tuple[str, ...]


def check_name(timm: Any, name: str) -> None:
    """Refuse a name before anything is built or fetched.

    Raises:
        OptionError: timm has no such model, or no weights with such a tag; says the nearest ones.
    """
    if ":" in name:  # hf-hub:owner/model, local-dir:folder
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=N_NAMED, cutoff=0.5)
        hint = f"the nearest names are {', '.join(near)}" if near else "timm.list_models() lists them"
        raise OptionError(f"timm {timm.__version__} knows no model '{architecture}'; {hint}.")
    tagged = timm.list_models(f"{architecture}*", pretrained=True)
    tags = [n.partition(".")[2] for n in tagged if n.partition(".")[0] == architecture]
    if tag and tag not in tags:
        hint = f"it has {', '.join(tags)}" if tags else "it has none: give the name alone, and --checkpoint"
        raise OptionError(f"timm {timm.__version__} has no weights '{tag}' of {architecture}; {hint}.")


def build_model(torch: Any, timm: Any, name: str, *, checkpoint: Path | None, pretrained: bool) -> ZooModel:
    """A model of timm with weights from a checkpoint, or from the hub, or random ones (seed 0).

    Args:
        name: as timm lists it, with or without the tag of its weights; or timm's address hf-hub:... or local-dir:...
        checkpoint: a local file; the number of classes is read off it.
        pretrained: without a checkpoint, whether weights come from the hub.

    Raises:
        InputError: the checkpoint can not be read or does not fit, or the hub can not be reached.
    """
    notes: list[str] = []
    if name.startswith(HUB_ADDRESS):  # even its configuration comes from there
        _require_hub(name.partition(":")[2].partition("@")[0], "config.json")
    if checkpoint is not None:
        module, weights = _build_from_checkpoint(timm, name, checkpoint, notes), str(checkpoint)
    elif pretrained:
        module, weights = _build_pretrained(timm, name)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, weights = timm.create_model(name), "random (seed 0)"
    module.eval().requires_grad_(False)
    data = timm.data.resolve_data_config({}, model=module)
    recipe = _read_recipe(data, notes)
    return ZooModel(module, weights, tuple(data["input_size"]), recipe, _read_labels(timm, module), tuple(notes))


def _build_pretrained(timm: Any, name: str) -> tuple[Any, str]:
    """(the module, where its weights come from)."""
    config = None if ":" in name else timm.models.get_pretrained_cfg(name)
    if config is not None and not config.has_weights:
        raise InputError(f"{name}: timm has no pretrained weights of it. {INSTEAD}")
    if config is not None and config.hf_hub_id:
        _require_hub(config.hf_hub_id, config.hf_hub_filename)
    try:
        module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub, its network library and timm each have their own classes
        raise InputError(
            f"{name}: the pretrained weights could not be loaded ({first_line(error)}). {INSTEAD}"
        ) from error
    return module, str(module.pretrained_cfg.get("hf_hub_id") or module.pretrained_cfg.get("url") or name)


def _require_hub(hub_id: str, filename: str | None) -> None:
    """Fail in seconds where there is no network and nothing in the cache."""
    hub: Any = importlib.import_module("huggingface_hub")  # timm needs it, so it is there
    files = (filename, "model.safetensors", "pytorch_model.bin")
    if any(isinstance(hub.try_to_load_from_cache(hub_id, f), str) for f in files if f):
        return
    endpoint = hub.constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered; what it thinks of this question is no matter
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # reached; certificates are between the hub and its own client
        raise InputError(
            f"{endpoint} can not be reached ({first_line(reason)}), and {hub_id} is not in its local cache. {INSTEAD}"
        ) from error


def _build_from_checkpoint(timm: Any, name: str, path: Path, notes: list[str]) -> Any:
    state = _read_checkpoint(timm, path)
    model = timm.create_model(name)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    n_classes = next((state[f"{h}.weight"].shape[0] for h in heads if f"{h}.weight" in state), model.num_classes)
    if n_classes != model.num_classes:
        model = timm.create_model(name, num_classes=n_classes)
    problems = _misfits(state, model.state_dict())
    if not problems:
        model.load_state_dict(state)
        return model
    overlay = {"source": "", "state_dict": dict(state), "num_classes": n_classes}
    try:  # timm's own loader renames the weights of original checkpoints and resamples position embeddings
        model = timm.create_model(name, pretrained=True, num_classes=n_classes, pretrained_cfg_overlay=overlay)
    except Exception as error:  # made for other checkpoints, it fails in many ways
        raise InputError(
            f"{path}: does not fit {name}: {'; '.join(problems)}. Give the model name that it was trained as."
        ) from error
    own = model.state_dict()
    changed = [k for k in own if k in state and state[k].shape != own[k].shape]
    notes += [f"'{k}' was resampled from {_shape(state[k])} to {_shape(own[k])}." for k in changed]
    return model


def _read_checkpoint(timm: Any, path: Path) -> dict[str, Any]:
    """The weights of a file by name; averaged ones (EMA) where it has them. Never runs code from the file."""
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise InputError(f"{path}: expected a checkpoint in .safetensors, .pth, .pt or .bin, found '{path.suffix}'.")
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own classes
        raise InputError(
            f"{path}: can not be read as plain weights ({first_line(error)}). Save it again from PyTorch as "
            "torch.save(model.state_dict(), ...)."
        ) from error
    if not isinstance(state, Mapping) or not state or not all(hasattr(v, "shape") for v in state.values()):
        raise InputError(f"{path}: holds no state dict, that is tensors by name; save model.state_dict().")
    return dict(state)


def _misfits(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What keeps weights from a model, at most three phrases."""
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    other = [
        f"{k} {_shape(state[k])} instead of {_shape(own[k])}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    named = ((missing, "missing"), (unexpected, "unexpected"), (other, "of another shape"))
    return [f"{_count(keys)} {what} ({_some(keys)})" for keys, what in named if keys]


def _count(names: Sequence[str]) -> str:
    return "1 weight" if len(names) == 1 else f"{len(names)} weights"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")


def _shape(tensor: Any) -> str:
    return str(list(tensor.shape))


def first_line(error: object) -> str:
    """The first line of a message without what ends it; the name of its class where it is no sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[:200] if lines and " " in lines[0] else type(error).__name__


def _read_recipe(data: Mapping[str, Any], notes: list[str]) -> Recipe | None:
    """The recipe in timm's data configuration; what it can not say is added to `notes`."""
    n_channels = data["input_size"][0]
    if n_channels not in (1, 3):
        notes.append(f"the model takes {n_channels} channels, so no preprocessing for photographs was embedded.")
        return None
    interpolation = data["interpolation"]
    if interpolation not in FILTERS:
        notes.append(f"timm resizes with '{interpolation}'; the embedded recipe says bicubic.")
        interpolation = "bicubic"
    return parse_timm({**data, "interpolation": interpolation})


def _read_labels(timm: Any, model: Any) -> tuple[str, ...]:
    """The class names: the checkpoint's own from the hub, else those of the ImageNet with as many classes."""
    config = model.pretrained_cfg
    names = config.get("label_names") or ()
    if names and len(names) == model.num_classes:
        described = config.get("label_descriptions") or {}
        return tuple(str(described.get(n, n)) for n in names)
    subset = timm.data.infer_imagenet_subset({"num_classes": model.num_classes})
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else ()
