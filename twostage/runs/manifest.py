"""What results in a folder were made with, kept beside them, so that stale ones are never taken for new."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage.config import Config
from twostage.data.atomic import replacing
from twostage.data.sample import SegmentationDataset
from twostage.download import digest_of
from twostage.engine import distributed
from twostage.errors import TwostageError

MANIFEST = "manifest.json"

_IRRELEVANT = {
    "": ("version", "task", "output_dir", "seed", "solver", "dataloader", "prompts", "clsclip"),
    "model": ("weights", "device", "losses"),
    "datasets": ("root", "test"),
    "input": ("min_size_train", "max_size_train", "crop_size", "color_jitter", "flip"),
    "self_training": ("start", "max_iter", "guided_iter", "base_lr", "ensemble", "rounds"),
    "test": (
        *("eval_period", "systems", "max_images", "expected_results", "overlays"),
        *("on_error", "resume", "save_seconds"),
    ),
}
"""Options that cannot change a label, by section; an option that is new counts as one that can."""


class StaleError(TwostageError):
    """What a folder holds was made by other weights or with other options."""


def label_facts(config: Config, dataset: SegmentationDataset, indices: Sequence[int]) -> dict[str, Any]:
    """All that pseudo labels depend on, as plain data: options, contents of files, classes, photos."""
    options = dataclasses.asdict(config)
    for section, names in _IRRELEVANT.items():
        for name in names:
            (options[section] if section else options).pop(name)
    files = {"MODEL.WEIGHTS": config.model.weights, "CLIP.PRETRAINED": config.clip.pretrained}
    files["MODEL.CLSCLIP_WEIGHTS"] = config.model.clsclip_weights
    files |= {"CLIP.TEXT_FEATURES": config.clip.text_features, "CLIP.PROMPT": config.clip.prompt}
    vocabulary = dataset.vocabulary
    return {
        "options": options,
        "sha256": {name: digest_of(Path(path)) for name, path in files.items() if Path(path).is_file()},
        "data": {"name": dataset.name, "photos": len(dataset), "labelled": len(indices)},
        "classes": [[*names] for names in vocabulary.names],
        "seen": None if vocabulary.seen is None else [*vocabulary.seen],
    }


def claim(folder: Path, wanted: Mapping[str, Any], made: str) -> None:
    """Makes `folder` the place of results with these facts; every process of a run calls it.

    made: a pattern of the result files, which mean nothing without their manifest.

    Raises:
        StaleError: it holds results of other facts (named), or of unknown ones.
    """
    path = folder / MANIFEST
    text = json.dumps(dict(wanted), indent=1, sort_keys=True)
    present = path.is_file()
    if present and (stored := path.read_text(encoding="utf-8")) != text:
        raise StaleError(
            f"{folder} holds the results of another run ({'; '.join(_differences(stored, text))}). Take the "
            "options and weights of that run, remove the folder, or choose another OUTPUT_DIR."
        )
    if not present and next(folder.glob(made), None) is not None:
        raise StaleError(
            f"{folder} holds results but no {MANIFEST}, so nobody knows what made them. Remove the folder, "
            "or choose another OUTPUT_DIR."
        )
    distributed.barrier()
    if distributed.is_main() and not present:
        with replacing(path) as stream:
            stream.write(text.encode())
    distributed.barrier()


def _differences(stored: str, wanted: str) -> list[str]:
    try:
        before, after = _flat(json.loads(stored)), _flat(json.loads(wanted))
    except (ValueError, AttributeError):
        return [f"its {MANIFEST} cannot be read"]
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    shown = [f"{key}: {before.get(key)} there, {after.get(key)} here" for key in keys[:5]]
    return [*shown, f"and {len(keys) - 5} more"] if len(keys) > 5 else shown


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"options.test.seen": "dataset", ...}"""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
