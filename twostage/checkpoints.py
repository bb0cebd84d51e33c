"""MODEL.WEIGHTS, whatever it is: our own checkpoint, a published one, or ImageNet weights of a backbone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from twostage.clsclip.config import ClsClipNetworkConfig
from twostage.engine.checkpoint import CheckpointError, load_strictly, read_checkpoint
from twostage.perpixel.config import PerPixelConfig
from twostage.published.backbone import PREFIX, read_backbone
from twostage.published.numpy_pickle import read_arrays
from twostage.published.reading import Published, read_published
from twostage.published.recognise import Kind, recognise, repaired

logger = logging.getLogger(__name__)

TRAIN_FIRST = (
    "Train stage one from it (`python train_net.py --config-file ... MODEL.WEIGHTS FILE`) and evaluate the "
    "checkpoint that comes out, OUTPUT_DIR/model_final.pth."
)
OF_TRAINING = ("dropout", "no_object_std", "timm_pretrained")
"""Options of networks that a trained one no longer depends on."""


@dataclass(frozen=True)
class Weights:
    """A weights file, recognised; its tensors stay on disk until they are copied into a model.

    content: {"model": tensors by the file's own names, ...}; published: its parts under our names, where the
    file is a published checkpoint.
    """

    path: str
    kind: Kind
    content: Mapping[str, Any]
    published: Published | None = None

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The names, synonyms included, that the network was trained on; none where nothing is said."""
        if self.published is not None:
            words = self.published.vocabulary
            return () if words is None else words.every_name
        return trained_names(self.content)

    def load_into(self, network: nn.Module) -> None:
        """All of the network, strictly.

        Raises:
            CheckpointError: the file holds no such network, or one of other options; says which to set.
        """
        load_strictly(network, self.tensors_for(network), self.path)

    def tensors_for(self, network: nn.Module) -> Mapping[str, Tensor]:
        """The file's tensors by the network's names.

        Raises:
            CheckpointError: as `load_into`.
        """
        if self.kind in (Kind.BACKBONE, Kind.PROMPTS):
            advice = TRAIN_FIRST if self.kind is Kind.BACKBONE else "They belong into CLIP.PROMPT."
            raise CheckpointError(f"{self.path} holds {self.kind.value}, no trained network. {advice}")
        if self.published is None:
            stored = self.content.get("network")
            wanted = stored if isinstance(stored, Mapping) else {}
            if _fits(network, self.content):
                _tell_options(network, wanted, self.path)
            else:
                _require_options(network, wanted, self.path)
            return self.content["model"]  # type: ignore[no-any-return]
        _require_options(network, self.published.network, self.path, self.published.clip_name)
        return self.published.stage_one


def open_weights(path: str | Path, repair: bool = False) -> Weights:
    """Reads what a file holds, recognises it, and takes a published checkpoint apart.

    repair: put right the names of a pixel decoder that a stripped and re-saved checkpoint misnames.

    Raises:
        CheckpointError: missing or damaged. PublishedError: of no known kind, or not complete.
    """
    where = str(path)
    content = dict(read_arrays(path) if Path(path).suffix == ".pkl" else read_checkpoint(path, lazily=True))
    if repair:
        content["model"] = repaired(content["model"])
    kind = recognise(content, where)
    if kind in (Kind.OURS, Kind.BACKBONE):
        return Weights(where, kind, content)
    published = read_published(content["model"], kind, where)
    logger.info("%s", published.report.format())
    if published.classes and published.vocabulary is None:
        logger.warning(
            "%s was trained on %d classes, which is the length of no known list: what it has seen is unknown",
            where,
            published.classes,
        )
    return Weights(where, kind, {"model": content["model"]}, published)


def starting_weights(network: nn.Module) -> Callable[[str], Mapping[str, Any]]:
    """How a training of this network reads MODEL.WEIGHTS: a backbone's weights leave the rest as it is."""

    def read(path: str) -> Mapping[str, Any]:
        weights = open_weights(path)
        if weights.kind is not Kind.BACKBONE:
            return {**weights.content, "model": weights.tensors_for(network)}
        own = network.state_dict()
        shapes = {n.removeprefix(PREFIX): tuple(t.shape) for n, t in own.items() if n.startswith(PREFIX)}
        backbone = read_backbone(weights.content["model"], shapes, path)
        logger.info("%s", backbone.report.format())
        fresh = sum(t.numel() for n, t in own.items() if not n.startswith(PREFIX))
        logger.info("Only the backbone starts from %s; the other %s numbers are fresh", path, f"{fresh:,}")
        return {"model": {**own, **{PREFIX + name: t for name, t in backbone.tensors.items()}}}

    return read


def published_prompts(path: str | Path) -> Tensor:
    """(n, W) float32 prompt vectors for stage two, from a published checkpoint.

    Raises:
        CheckpointError: it has none. PublishedError: as `open_weights`.
    """
    found = open_weights(path).published
    if found is None or found.crop_prompt is None:
        raise CheckpointError(f"{path} holds no published prompt vectors (clip_adapter.prompt_learner.*).")
    return found.crop_prompt.float()


def trained_names(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """The names, synonyms included, of the vocabulary that travels in a checkpoint."""
    vocabulary = checkpoint.get("vocabulary") or {}
    return tuple(name for synonyms in vocabulary.get("names", ()) for name in synonyms)


def _fits(network: nn.Module, content: Mapping[str, Any]) -> bool:
    own, stored = network.state_dict(), content["model"]
    return own.keys() == stored.keys() and all(own[name].shape == stored[name].shape for name in own)


def _tell_options(network: nn.Module, stored: Mapping[str, Any], where: str) -> None:
    """Warns of options that no shape tells, so that the weights fit and the numbers may yet be others."""
    config = getattr(network, "config", None)
    own = {name: _plain(getattr(config, name, None)) for name in stored if name not in OF_TRAINING}
    lines = [
        f"{name} {own[name]!r} here, {value!r} there"
        for name, value in stored.items()
        if name in own and own[name] != _plain(value)
    ]
    if lines:
        logger.warning("%s was trained with other options of the network: %s", where, "; ".join(lines))


def _require_options(network: nn.Module, wanted: Mapping[str, Any], where: str, clip_name: str = "") -> None:
    """Raises CheckpointError where the network was made with other options, naming each."""
    config: Any = getattr(network, "config", None)
    if not dataclasses.is_dataclass(config):
        return
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if strange := [name for name in wanted if name not in own]:
        raise CheckpointError(
            f"{where} holds another kind of network than {type(network).__name__}, one with "
            f"{', '.join(strange)}. Is it meant for another TASK, or for another slot (PROPOSALS, PIXELS)?"
        )
    sections = {PerPixelConfig: "PER_PIXEL", ClsClipNetworkConfig: "CLSCLIP"}
    section = sections.get(type(config), "MASK_FORMER")
    lines = []
    for name, value in wanted.items():
        if _plain(own[name]) == _plain(value):
            continue
        if name == "embedding_dim" and clip_name:
            lines.append(f"a joint space {own[name]} wide here, {value} there: set CLIP.MODEL {clip_name}")
        else:
            lines.append(
                f"{name} {own[name]!r} here, {value!r} there: set MODEL.{section}.{name.upper()} {value}"
            )
    if lines:
        raise CheckpointError(f"{where} is of another network:\n  " + "\n  ".join(lines))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
