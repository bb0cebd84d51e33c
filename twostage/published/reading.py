"""A published checkpoint taken apart: stage one, CLIP, prompts, each tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twostage.published.clip_names import ARCHITECTURES, clip_shapes, which_clip
from twostage.published.names import (
    ADAPTER,
    CLASS_WEIGHTS,
    CLIP,
    LEARNER,
    NO_OBJECT,
    REGION_ADAPTER,
    published_name,
    stage_one_table,
)
from twostage.published.prompts import SIGNALS, VECTORS, prompt_shapes, strange_signals
from twostage.published.recognise import Kind
from twostage.published.report import Report, compare
from twostage.published.stage_one import expected_shapes, network_options
from twostage.published.trained_words import trained_words
from twostage.vocabulary import Vocabulary

PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
"""CLIP's normalisation (Radford et al., 2021), which adapters store times 255."""

ADVICE = (
    "The file is incomplete, damaged, or of another code: get it anew, or name what it holds with "
    "tools/convert_checkpoint.py --report."
)


@dataclass(frozen=True)
class Published:
    """The parts of one published checkpoint, under this package's names; empty or None where absent.

    stage_one, clip: tensors by our (open_clip's) names; network: options of MaskFormerConfig; clip_name:
    open_clip's; prompt: (n, W) of the adapter that serves stage one (and stage two where it has no own);
    region_prompt: (n, W) of stage two's own adapter; separate: whether there is one; classes: how many were
    trained, 0 unknown; vocabulary: them by name, where the number is one of a known list.
    """

    report: Report
    kind: Kind
    stage_one: Mapping[str, Tensor] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Tensor] = field(default_factory=dict)
    clip_name: str = ""
    prompt: Tensor | None = None
    region_prompt: Tensor | None = None
    separate: bool = False
    classes: int = 0
    vocabulary: Vocabulary | None = None

    @property
    def crop_prompt(self) -> Tensor | None:
        """(n, W) vectors for stage two: its own adapter's where there is one, else the shared ones."""
        return self.region_prompt if self.separate else self.prompt


@dataclass(frozen=True)
class _Adapter:
    """One adapter: CLIP inside, learner, constants; names without the adapter's prefix."""

    tensors: Mapping[str, Tensor]
    clip: Mapping[str, Tensor]
    clip_name: str
    expected: dict[str, tuple[int, ...]]
    unfit: list[str]

    @property
    def vectors(self) -> Tensor | None:
        return self.tensors.get(f"{LEARNER}{VECTORS}")


def read_published(model: Mapping[str, Tensor], kind: Kind, where: str) -> Published:
    """Every tensor of a published checkpoint (by published names) in its part.

    All that is used has to be there; all that is there has to be known. What is known and not used (see
    `_ignored`) may be absent.

    Raises:
        PublishedError: anything is missing, left over, of another shape or another value; nothing is given
            then.
    """
    expected: dict[str, tuple[int, ...]] = {}
    mapped: dict[str, int] = {}
    network: dict[str, Any] = {}
    table: dict[str, str] = {}
    classes = _trained_classes(model)
    if kind.has_stage_one:
        network = network_options(model, where)
        table = stage_one_table(model)
        expected |= {str(published_name(name)): shape for name, shape in expected_shapes(network).items()}
        expected |= {CLASS_WEIGHTS: (classes + 1,)} if CLASS_WEIGHTS in model else {}
        mapped["stage one"] = len(table)
    adapters = {prefix: _adapter(model, prefix, kind, where) for prefix in (ADAPTER, REGION_ADAPTER)}
    unfit: list[str] = []
    for prefix, adapter in adapters.items():
        expected |= {prefix + name: shape for name, shape in adapter.expected.items()}
        unfit += [prefix + line for line in adapter.unfit]
    shared, region = adapters[ADAPTER], adapters[REGION_ADAPTER]
    unfit += _other_clip(shared.clip, region.clip)
    mapped |= {f"CLIP {shared.clip_name}": len(shared.clip)} if shared.clip else {}
    learners = sum(adapter.vectors is not None for adapter in adapters.values())
    mapped |= {"learned prompts": learners} if learners else {}
    missing, unexpected, shapes = compare(expected, model)
    ignored = _ignored(model, kind)
    what = _describe(kind, network, classes, shared)
    report = Report(where, what, mapped, ignored, missing, unexpected, [*shapes, *unfit])
    report.require_complete(ADVICE)
    return Published(
        report=report,
        kind=kind,
        stage_one={name: model[source] for name, source in table.items()},
        network=network,
        clip=shared.clip,
        clip_name=shared.clip_name,
        prompt=shared.vectors,
        region_prompt=region.vectors,
        separate=bool(region.tensors),
        classes=classes,
        vocabulary=trained_words(classes),
    )


def _trained_classes(model: Mapping[str, Tensor]) -> int:
    weights = model.get(CLASS_WEIGHTS)
    return 0 if weights is None or weights.ndim != 1 else len(weights) - 1


def _adapter(model: Mapping[str, Tensor], prefix: str, kind: Kind, where: str) -> _Adapter:
    tensors = {name.removeprefix(prefix): t for name, t in model.items() if name.startswith(prefix)}
    clip = {name.removeprefix(CLIP): t for name, t in tensors.items() if name.startswith(CLIP)}
    expected: dict[str, tuple[int, ...]] = {}
    unfit: list[str] = []
    needed = kind is Kind.ZERO_SHOT and (prefix == ADAPTER or bool(tensors))
    name = which_clip(clip, where) if clip or needed else ""
    if name:
        shape = ARCHITECTURES[name]
        expected |= {CLIP + part: size for part, size in clip_shapes(shape).items()}
        if needed or NO_OBJECT in tensors:
            expected[NO_OBJECT] = (1, shape.joint)
    for constant, values in PIXELS.items():
        if constant in tensors:
            expected[constant] = (1, 3, 1, 1)
            stored, wanted = tensors[constant], torch.tensor(values).view(1, 3, 1, 1) * 255
            if stored.shape == wanted.shape and not torch.allclose(stored, wanted):
                unfit.append(f"{constant}: not CLIP's own, {stored.flatten().tolist()}")
    if any(part.startswith(LEARNER) for part in tensors):
        expected |= prompt_shapes(tensors, ARCHITECTURES[name].text if name else None)
        unfit += strange_signals(tensors)
    return _Adapter(tensors, clip, name, expected, unfit)


def _other_clip(shared: Mapping[str, Tensor], region: Mapping[str, Tensor]) -> list[str]:
    """Both adapters were built around one frozen CLIP; two different ones would need two models here."""
    if not region or not shared:
        return []
    return [
        f"{REGION_ADAPTER}{CLIP}{name}: another than stage one's"
        for name in sorted(set(shared) & set(region))
        if not torch.equal(shared[name], region[name])
    ]


def _ignored(model: Mapping[str, Tensor], kind: Kind) -> dict[str, list[str]]:
    both = (ADAPTER, REGION_ADAPTER)
    groups = {
        "class weights of the loss; only their number tells, that of the trained classes": [CLASS_WEIGHTS],
        "CLIP's normalisation, checked to be its own": [p + c for p in both for c in PIXELS],
        "embeddings of fixed tokens, checked to be CLIP's own": [
            p + LEARNER + signal for p in both for signal in SIGNALS
        ],
        "stage two's copy of CLIP, checked to be the same": [
            name for name in model if name.startswith(REGION_ADAPTER + CLIP)
        ],
        "a vector for no object that was never trained": [REGION_ADAPTER + NO_OBJECT],
    }
    if kind is Kind.PROMPTS:
        groups["a vector for no object, which prompts alone have no use for"] = [ADAPTER + NO_OBJECT]
    found = {reason: [name for name in names if name in model] for reason, names in groups.items()}
    return {reason: names for reason, names in found.items() if names}


def _describe(kind: Kind, network: Mapping[str, Any], classes: int, adapter: _Adapter) -> str:
    words = trained_words(classes)
    facts = [
        str(network["backbone"]) if network else "",
        f"{classes} trained classes" + ("" if words else " of an unknown list") if classes else "",
        adapter.clip_name and f"CLIP {adapter.clip_name}",
    ]
    return f"{kind.value} ({', '.join(fact for fact in facts if fact)})"
