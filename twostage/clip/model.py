"""The only door to open_clip: a model by name and weights, checked, in evaluation mode, frozen, never
modified.

open_clip itself only warns when weights are missing or the activation is the wrong one; here both are errors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor, nn

from twostage.clip import checks, mini
from twostage.clip.checks import ClipError
from twostage.clip.network import fail_fast_without_network, silent
from twostage.clip.pair import FrozenPair
from twostage.clip.precision import convert_weights, preferred_dtype
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)
_LOCAL, _HUB = "local-dir:", "hf-hub:"


def register_model_config(path: str | Path) -> None:
    """Make the model of an open_clip JSON file known under the file's stem."""
    open_clip.add_model_config(Path(path))


def model_names() -> list[str]:
    """Every model that can be loaded by name."""
    known = open_clip.list_models()
    return [*known, *(name for name in mini.NAMES if name not in known)]


class ClipModel(FrozenPair):
    """Both towers of an open_clip model; `load` makes one, the base class encodes."""

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        seed: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> ClipModel:
        """Build a model and load its weights.

        name: an open_clip model ("ViT-B-16"), "local-dir:FOLDER" or "hf-hub:OWNER/MODEL".
        pretrained: a tag ("openai"), a file (.safetensors, .pt), "local-dir:FOLDER"; "random" with a `seed`
        for untrained weights. None is allowed only where the name says where the weights are (local-dir,
        hf-hub, the miniature models). dtype: format of the weights; "auto" asks `preferred_dtype`. cache_dir:
        where downloads are kept.

        Raises:
            ClipError: unknown name or tag, missing or unfit weights, wrong activation, no network.
        """
        plan = _plan(name, None if pretrained is None else str(pretrained), seed)
        return cls._ready(_build(plan, cache_dir), plan, device, dtype)

    @classmethod
    def from_tensors(
        cls,
        name: str,
        tensors: Mapping[str, Tensor],
        where: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] = torch.float32,
    ) -> ClipModel:
        """One of OpenAI's models whose weights are at hand, by open_clip's names; they are copied.

        where: where they come from, for messages.

        Raises:
            ClipError: unknown name, unfit weights, wrong activation.
        """
        plan = _Plan(_plan(name, "random", seed=0).name, where, where, True)
        return cls._ready(_from_archive(plan, dict(tensors)), plan, device, dtype)

    @classmethod
    def _ready(
        cls,
        module: nn.Module,
        plan: _Plan,
        device: torch.device | str,
        dtype: torch.dtype | Literal["auto"],
    ) -> ClipModel:
        """Checked, moved, with its tokenizer."""
        if plan.quick_gelu:
            checks.require_quick_gelu(module, f"{plan.name} with {plan.weights}")
        if dtype == "auto":
            dtype, reason = preferred_dtype(device)
            logger.info("%s: %s", plan.name, reason)
        try:
            tokenizer = open_clip.get_tokenizer(plan.name)
        except Exception as error:
            raise ClipError(f"{plan.name}: cannot make its tokenizer ({error}).") from error
        return cls(convert_weights(module.to(device), dtype), tokenizer, plan.name)


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a model before its weights are read. dim: joint width; text_width: of a token;
    visual_width, blocks: of the image tower's tokens and its depth, 0 where it is no VisionTransformer.
    """

    dim: int
    text_width: int
    parameters: int
    visual_width: int = 0
    blocks: int = 0


def describe(name: str, pretrained: str | None = None) -> ClipFacts:
    """The model built without memory for its weights (a few milliseconds).

    pretrained: as for ClipModel.load, checked but not read; None checks nothing.

    Raises:
        ClipError: unknown name, tag or file; a model whose shape is known only to its folder or hub.
    """
    if name.startswith((_LOCAL, _HUB)):
        raise ClipError(f"{name}: its shape is known only once it is loaded.")
    plan = _plan(name, pretrained or "random", seed=0)
    with torch.device("meta"), silent():
        module: nn.Module = open_clip.create_model(plan.name, pretrained=None, device="meta")
    tower: Any = getattr(module, "text", module)
    dim = open_clip.get_model_config(plan.name)["embed_dim"]
    width = int(tower.token_embedding.weight.shape[1]) if hasattr(tower, "token_embedding") else 0
    visual: Any = getattr(module, "visual", None)
    token = getattr(visual, "class_embedding", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    return ClipFacts(
        int(dim),
        width,
        sum(p.numel() for p in module.parameters()),
        *((0, 0) if token is None else (int(token.shape[0]), len(blocks))),
    )


@dataclass(frozen=True)
class _Plan:
    """What to build, settled before anything is read. weights: what to show people; source: for open_clip, or
    None."""

    name: str
    weights: str
    source: str | None
    quick_gelu: bool
    seed: int | None = None


def _plan(name: str, pretrained: str | None, seed: int | None) -> _Plan:
    if pretrained is not None and pretrained.startswith(_LOCAL):
        name, pretrained = pretrained, None
    if name.startswith((_LOCAL, _HUB)):
        return _plan_folder(name, pretrained)
    name = name.replace("/", "-")
    if name not in model_names():
        raise ClipError(f"CLIP: unknown model {name!r}.{nearest(name, model_names())}")
    if name in mini.NAMES:
        register_model_config(mini.model_config(name))
        pretrained = pretrained or str(mini.weights_path(name))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ClipError(
            f"{name}: say which weights to load: a tag ({', '.join(tags) or 'none is known for this model'}),"
            " the path of a file, or 'random' with a seed."
        )
    if pretrained == "random":
        if seed is None:
            raise ClipError(f"{name}: random weights need a seed.")
        return _Plan(name, "random weights", None, False, seed)
    if open_clip.get_pretrained_cfg(name, pretrained):
        return _Plan(name, f"tag {pretrained!r}", pretrained, _tag_needs_quick_gelu(name, pretrained))
    return _plan_file(name, Path(pretrained), tags)


def _plan_folder(name: str, pretrained: str | None) -> _Plan:
    if pretrained is not None:
        raise ClipError(
            f"{name}: the weights come from there too, so pretrained={pretrained!r} has no place here."
        )
    if name.startswith(_LOCAL):
        folder = Path(name.removeprefix(_LOCAL))
        if not (folder / "open_clip_config.json").is_file():
            raise ClipError(f"{name}: expected a folder with open_clip_config.json and a weights file.")
        if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
            raise ClipError(f"{name}: the folder holds no weights (.safetensors, .bin or .pth).")
    return _Plan(name, name, name, False)


def _plan_file(name: str, path: Path, tags: list[str]) -> _Plan:
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise ClipError(f"{name}: the weights file {path} does not exist.")
        other = open_clip.list_pretrained_models_by_tag(str(path))
        hint = f" It belongs to {', '.join(other[:5])}." if other else nearest(str(path), tags)
        raise ClipError(
            f"{name}: unknown weights {str(path)!r}, neither a tag of this model nor a file.{hint}"
        )
    if checks.hints_quick_gelu(path) and not open_clip.get_model_config(name).get("quick_gelu"):
        logger.warning("%s: weights named like this usually need the model %s-quickgelu", path, name)
    return _Plan(name, str(path), str(path), False)


def _tag_needs_quick_gelu(name: str, tag: str) -> bool:
    return bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))


def _build(plan: _Plan, cache_dir: str | Path | None) -> nn.Module:
    """The open_clip model in float32 on the CPU, with the planned weights in it."""
    folder = None if cache_dir is None else str(cache_dir)
    if plan.source is None:
        assert plan.seed is not None
        with torch.random.fork_rng(devices=[]), silent():
            torch.manual_seed(plan.seed)
            random: nn.Module = open_clip.create_model(plan.name, pretrained=None)
        return random
    archive = checks.read_torchscript(Path(plan.source)) if Path(plan.source).is_file() else None
    if archive is not None:
        return _from_archive(plan, archive)
    is_schema = plan.source == plan.name
    try:
        with fail_fast_without_network(), silent():
            module: nn.Module = open_clip.create_model(
                plan.name,
                pretrained=None if is_schema else plan.source,
                force_quick_gelu=plan.quick_gelu,
                cache_dir=folder,
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:
        raise ClipError(_explain(plan, error)) from error
    return module


def _from_archive(plan: _Plan, state: dict[str, Tensor]) -> nn.Module:
    """OpenAI's own weights, which were always trained with QuickGELU."""
    with silent():
        module: nn.Module = open_clip.create_model(plan.name, pretrained=None, force_quick_gelu=True)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        misfit = checks.explain_mismatch(module.state_dict(), state)
        raise ClipError(f"{plan.name}: the weights in {plan.source} do not fit: {misfit}.") from error
    return module


def _explain(plan: _Plan, error: Exception) -> str:
    """One message for what can go wrong while weights are fetched and loaded."""
    source = plan.source or ""
    if not Path(source).is_file():
        return (
            f"{plan.name}: the weights of {plan.weights} could not be fetched or loaded ({error})."
            " Without a network, give the path of a file that was downloaded elsewhere."
        )
    try:
        got = open_clip.factory.load_state_dict(source, weights_only=True)
    except Exception as cause:
        return f"{plan.name}: {source} cannot be read as weights ({cause}). Is the file damaged?"
    with silent():
        expected = open_clip.create_model(plan.name, pretrained=None).state_dict()
    return f"{plan.name}: the weights in {source} do not fit: {checks.explain_mismatch(expected, got)}."
