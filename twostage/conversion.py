"""Weights from one form into the other: published checkpoints into files of this package, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.checkpoints import Weights, open_weights
from twostage.clip.learned_prompt import LearnedPrompt
from twostage.clip.prompt_file import PromptFacts, load_prompt, save_prompt
from twostage.engine.checkpoint import CheckpointError, read_checkpoint, write_atomically, write_weights
from twostage.maskformer.config import MaskFormerConfig
from twostage.published.reading import read_published
from twostage.published.recognise import Kind, recognise
from twostage.published.report import Report
from twostage.published.writing import to_published
from twostage.vocabulary import nearest

WHATS = ("stage_one", "clip", "prompts")
FORMS = ("twostage", "published")


@dataclass(frozen=True)
class Conversion:
    """What to make of a file.

    what: the part to write; to: "twostage" (.safetensors) or "published" (.pth); repair: put right the names
    of a stripped and re-saved checkpoint; clip, prompt: files to put beside stage one in a published one.
    """

    what: str = "stage_one"
    to: str = "twostage"
    repair: bool = False
    clip: Path | None = None
    prompt: Path | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (("what", self.what, WHATS), ("to", self.to, FORMS)):
            if value not in allowed:
                known = ", ".join(allowed)
                raise CheckpointError(f"--{name} {value!r} is none of {known}.{nearest(value, allowed)}")
        if self.to == "twostage" and (self.clip or self.prompt):
            raise CheckpointError(
                "--clip and --prompt stand beside stage one in a published checkpoint: add --to published."
            )
        if self.to == "published" and self.what != "stage_one":
            raise CheckpointError(
                f"--what {self.what} --to published: a published checkpoint begins with stage one; add CLIP "
                "and prompts to it with --clip FILE and --prompt FILE."
            )


def examine(path: str | Path, repair: bool = False) -> Report:
    """What a file is and what would become of its tensors.

    Raises:
        CheckpointError: missing or damaged. PublishedError: of no known kind, or not complete.
    """
    weights = open_weights(path, repair)
    if weights.published is not None:
        return weights.published.report
    return Report(str(path), weights.kind.value, {"it": len(weights.content["model"])})


def convert(source: str | Path, out: str | Path, conversion: Conversion) -> Report:
    """Writes `out`, whole or not at all, and accounts for every tensor of `source`.

    Raises:
        CheckpointError: the source lacks the wanted part, or `out` has the wrong suffix.
        PublishedError: the source is of no known kind, not complete, or has no published form.
    """
    suffix = ".safetensors" if conversion.to == "twostage" else ".pth"
    if Path(out).suffix != suffix:
        raise CheckpointError(f"{out}: files of the form {conversion.to!r} end in {suffix}.")
    weights = open_weights(source, conversion.repair)
    if conversion.to == "published":
        return _write_published(weights, Path(out), conversion)
    write: dict[str, Callable[[Weights, Path], None]] = {
        "stage_one": _write_stage_one,
        "clip": _write_clip,
        "prompts": _write_prompts,
    }
    write[conversion.what](weights, Path(out))
    if weights.published is not None:
        return weights.published.report
    return Report(str(source), weights.kind.value, {"stage one": len(weights.content["model"])})


def _write_stage_one(weights: Weights, out: Path) -> None:
    if weights.kind is Kind.OURS:
        entries = ("vocabulary", "network", "iteration", "version")
        kept = {name: weights.content[name] for name in entries if name in weights.content}
        write_weights(out, weights.content["model"], kept)
        return
    found = weights.published
    if found is None or not found.stage_one:
        raise _lacks(weights, "stage one's network")
    metadata: dict[str, Any] = {"network": dataclasses.asdict(MaskFormerConfig(**found.network))}
    if found.vocabulary is not None:
        metadata["vocabulary"] = {"names": [list(synonyms) for synonyms in found.vocabulary.names]}
    write_weights(out, found.stage_one, metadata)


def _write_clip(weights: Weights, out: Path) -> None:
    found = weights.published
    if found is None or not found.clip:
        raise _lacks(weights, "CLIP")
    write_weights(out, found.clip, {"clip": found.clip_name})


def _write_prompts(weights: Weights, out: Path) -> None:
    found = weights.published
    if found is None or found.crop_prompt is None:
        raise _lacks(weights, "prompt vectors")
    facts = PromptFacts(clip=found.clip_name, names=weights.trained_names, mode="paper")
    save_prompt(out, LearnedPrompt(found.crop_prompt), facts)


def _write_published(weights: Weights, out: Path, conversion: Conversion) -> Report:
    tensors, classes = _stage_one(weights)
    inside = weights.published
    clip = None if inside is None else inside.clip or None
    prompt = None if inside is None else inside.prompt
    if inside is not None and inside.separate:
        raise CheckpointError(
            f"{weights.path} has an adapter for each stage; write its parts with --what, one at a time."
        )
    if conversion.clip is not None:
        clip = _clip_of(conversion.clip)
    if conversion.prompt is not None:
        prompt = load_prompt(conversion.prompt)[0].vectors.detach()
    state = to_published(tensors, classes, clip, prompt)
    # What was made has to be what the reader takes, or it would be refused where it is needed.
    report = read_published(state, recognise({"model": state}, str(out)), str(out)).report
    write_atomically(out, lambda stream: torch.save({"model": state}, stream))
    return report


def _stage_one(weights: Weights) -> tuple[dict[str, Tensor], int]:
    """Tensors by our names in float32, and the number of trained classes (0: unknown)."""
    if weights.published is not None:
        return dict(weights.published.stage_one), weights.published.classes
    if weights.kind is not Kind.OURS:
        raise _lacks(weights, "stage one's network")
    names = (weights.content.get("vocabulary") or {}).get("names", ())
    return {name: tensor.float() for name, tensor in weights.content["model"].items()}, len(names)


def _clip_of(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":  # CLIP alone, as this program writes it
        return dict(read_checkpoint(path)["model"])
    found = open_weights(path)
    if found.published is None or not found.published.clip:
        raise _lacks(found, "CLIP")
    return dict(found.published.clip)


def _lacks(weights: Weights, what: str) -> CheckpointError:
    return CheckpointError(f"{weights.path} is {weights.kind.value} and holds no {what}.")
