"""The one door to transformers: which networks are known, and how their weights are read.

Only safetensors files are read, and no code of a repository is ever run.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twostage.registry import ComponentError
from twostage.weights import WeightsError

CLASSES = {
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
    "eomt": "EomtForUniversalSegmentation",
    "eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
    "sam": "SamModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
}
"""model_type in config.json -> the class in transformers. SAM 2 is published as a tracker of videos, of which
the network for images is a part."""

PROMPTED = ("sam", "sam2", "sam2_video")
"""Networks that are asked by points."""

FIXED_SQUARE = ("eomt", "eomt_dinov3", *PROMPTED)
"""Networks whose input is a square of one size."""

MAY_LACK = re.compile(r"criterion\.|\.(relative_position_index|position_ids|num_batches_tracked)$")
"""Tensors that older files do not have and that no mask depends on, or that follow from config.json."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
REMEDY = "Without a network, fetch it elsewhere (hf download NAME --local-dir FOLDER) and give the folder."


@dataclass(frozen=True)
class HubModel:
    """network: in evaluation mode, float32; kind: a key of CLASSES; mean, std: of RGB in 0..1; short, long:
    edges of the input in pixels as published with the weights.
    """

    network: nn.Module
    kind: str
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    short: int = 800
    long: int = 1333

    @property
    def side(self) -> int:
        """Edge of the square that the network wants, pixels; 0 where it takes any size."""
        if self.kind not in FIXED_SQUARE:
            return 0
        config: Any = self.network.config
        size = getattr(config, "prompt_encoder_config", config).image_size
        return int(size if isinstance(size, int) else size[0])


def check(weights: str) -> Path | None:
    """The local folder that is meant, or None for a name on the hub; nothing is fetched.

    Raises:
        WeightsError: no such folder, or one without config.json and safetensors; no possible name.
        ComponentError: a network that is not known here.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return folder
    if folder.is_file():
        raise WeightsError(f"{weights}: is a file; expected a folder as save_pretrained() writes it.")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", weights):
        return None
    raise WeightsError(
        f"Weights {weights!r}: no such folder, and no name on the hub (those look like OWNER/NAME)."
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: has no config.json; expected a folder as save_pretrained() writes it.")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{folder}: has no .safetensors file. Pickled weights (.bin, .pth) are not read; save the model "
            "again with save_pretrained()."
        )
    _known(_read_json(folder / "config.json"), str(folder))


def load(weights: str, revision: str = "") -> HubModel:
    """A network with its weights, on the CPU; fetched from the hub where `weights` is a name.

    revision: branch, tag or commit on the hub; "" takes the newest.

    Raises:
        WeightsError: not to be had, damaged, or tensors that are missing or of another shape.
        ComponentError: a network that is not known here, or not in the transformers installed.
    """
    folder = check(weights)
    source = str(folder or weights)
    of = {"revision": revision or None, "trust_remote_code": False}
    transformers: Any = importlib.import_module("transformers")
    try:
        told, _ = transformers.PretrainedConfig.get_config_dict(source, **of)
        kind = _known(told, weights)
        network_class = _class_of(kind, transformers)
        network, report = network_class.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **of
        )
        processor = _processor(source, revision)
    except (ComponentError, WeightsError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if folder is None:
            raise WeightsError(f"{weights}: no such folder, and on the hub: {reason}. {REMEDY}") from error
        raise WeightsError(f"{weights}: cannot be read as a model ({reason}).") from error
    lacking = [key for key in report["missing_keys"] if not MAY_LACK.search(key)]
    lacking = sorted([*lacking, *(str(key[0]) for key in report["mismatched_keys"])])
    if lacking:
        raise WeightsError(
            f"{weights}: {len(lacking)} tensors of {network_class.__name__} are missing or have another "
            f"shape, {lacking[0]} for one. Are these the weights of another model?"
        )
    return HubModel(network.eval().requires_grad_(False), kind, **_preparation(processor))


def _known(told: dict[str, Any], where: str) -> str:
    kind = told.get("model_type")
    if kind not in CLASSES:
        raise ComponentError(
            f"{where}: a model of type {kind!r} gives no masks here; known are {', '.join(CLASSES)}."
        )
    return str(kind)


def _class_of(kind: str, transformers: Any) -> Any:
    name = CLASSES[kind]
    if not hasattr(transformers, name):
        raise ComponentError(
            f"transformers {transformers.__version__} has no {name}: it is too old for this model. "
            "pip install -U transformers."
        )
    return getattr(transformers, name)


def _processor(source: str, revision: str) -> dict[str, Any]:
    """How photos are prepared, as the file beside the weights tells; {} where there is none."""
    hub: Any = importlib.import_module("transformers.utils.hub")
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = hub.cached_file(
            source, name, revision=revision or None, _raise_exceptions_for_missing_entries=False
        )
        if path:
            told = _read_json(Path(path))
            inner = told.get("image_processor")
            return inner if isinstance(inner, dict) else told
    return {}


def _preparation(processor: dict[str, Any]) -> dict[str, Any]:
    """mean, std, short and long out of a preprocessor's file, as far as they stand there; where photos were
    drawn to height x width, the shorter of these is the shorter edge (ours: shapes are kept).
    """
    found: dict[str, Any] = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(processor.get(theirs), list) and len(processor[theirs]) == 3:
            found[ours] = tuple(float(value) for value in processor[theirs])
    size = processor.get("size")
    size = (
        size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": processor.get("max_size")}
    )
    if isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        short = min(size["height"], size["width"])
        return {**found, "short": short, "long": round(short * HubModel.long / HubModel.short)}
    for ours, theirs in (("short", "shortest_edge"), ("long", "longest_edge")):
        if isinstance(size.get(theirs), int):
            found[ours] = size[theirs]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a mapping, got {type(content).__name__}.")
    return content


def tiny() -> HubModel:
    """A Mask2Former of a few thousand random weights, the same each time."""
    transformers: Any = importlib.import_module("transformers")
    backbone = transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.Mask2FormerForUniversalSegmentation(config)
    return HubModel(network.eval().requires_grad_(False), "mask2former", short=64, long=128)
