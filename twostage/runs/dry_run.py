"""What a configuration means, without weights, data or a GPU: `train_net.py --dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twostage import registry
from twostage.builder import Builder, at_test_time
from twostage.clip.checks import ClipError
from twostage.clip.model import ClipFacts, describe
from twostage.config import Config, ConfigError, SlotConfig
from twostage.data import catalog
from twostage.data.errors import DatasetError
from twostage.data.sample import SegmentationDataset
from twostage.errors import TwostageError
from twostage.evaluation import expected
from twostage.networks import shipped
from twostage.protocol import settled
from twostage.runs.clsclip import folds_of, rule_of, split_for, uses_what_is_trained
from twostage.runs.clsclip_report import system_of
from twostage.systems import ALL_SYSTEMS
from twostage.vocabulary import nearest

SLOTS = {
    "proposals": "proposals",
    "classifier": "classifiers",
    "dense": "dense",
    "pixels": "dense",
    "ensemble": "ensembles",
}
"""Section of the configuration -> kind of component."""


@dataclass
class Plan:
    """What was found. parts: lines on what will run; missing: files that have to be got first; wrong: errors
    of the configuration itself; parameters: trainable numbers of each network.
    """

    parts: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)

    def format(self) -> str:
        """For people: parts, then what is missing, then what is wrong."""
        lines = list(self.parts)
        lines += [f"missing: {line}" for line in self.missing]
        lines += [f"WRONG: {line}" for line in self.wrong]
        if not self.wrong:
            lines.append(
                "The configuration is right." + (" Get what is missing first." if self.missing else "")
            )
        return "\n".join(lines)


def dry_run(config: Config) -> Plan:
    """Resolves everything that a run would use; networks are built on the meta device."""
    plan = Plan([f"task: {config.task}"])
    try:
        config = settled(config)
    except ConfigError as error:
        plan.wrong.append(str(error))
        return plan
    clip = _clip(config, plan)
    _networks(config, clip, plan)
    for section, kind in SLOTS.items():
        _component(section, kind, getattr(config, section), plan)
    _prompts(config, plan)
    _weights(config, plan)
    wanted = dict.fromkeys([*config.datasets.train, *config.datasets.test])
    called = {name: _dataset(name, config, plan) for name in wanted}
    names = [called[name] for name in config.datasets.test]
    _test_time(config, plan)
    _measurement(config, names, plan)
    return plan


def _clip(config: Config, plan: Plan) -> ClipFacts | None:
    options = config.clip
    inside = options.pretrained == "checkpoint"
    try:
        facts = describe(options.model)
    except ClipError as error:
        plan.wrong.append(str(error))
        return None
    plan.parts.append(
        f"CLIP: {options.model}, {options.pretrained or 'its own weights'}, {facts.parameters:,} parameters, "
        f"joint width {facts.dim}, frozen"
    )
    if not inside:
        try:
            describe(options.model, options.pretrained or None)
        except ClipError as error:
            file = Path(options.pretrained)
            there = bool(file.suffix) or len(file.parts) > 1
            (plan.missing if there and not file.is_file() else plan.wrong).append(str(error))
    elif not config.model.weights:
        plan.wrong.append("CLIP.PRETRAINED checkpoint: there is no MODEL.WEIGHTS to take CLIP from.")
    return facts


def _networks(config: Config, clip: ClipFacts | None, plan: Plan) -> None:
    if clip is None:
        return
    builder = Builder(config)
    builder.device = torch.device("meta")
    of_pixels = config.model.per_pixel.get("embedding_dim", clip.dim)
    builder.embedding_dim = config.model.mask_former.get("embedding_dim", of_pixels)
    makers: dict[str, Any] = {}
    of_pixels_alone = config.pixels.name == "per_pixel" and not config.proposals.name
    in_training = config.task == "proposals" or (config.task == "self_training" and not of_pixels_alone)
    if "maskformer" in config.proposals.names() or in_training:
        makers["stage one"] = builder.network
    if config.pixels.name == "per_pixel" or config.task == "per_pixel":
        makers["per-pixel network"] = builder.pixel_network
    if config.task == "clsclip" or uses_what_is_trained(config):
        builder.tower_shape = (clip.visual_width, clip.blocks)
        if clip.blocks:
            makers["ClsCLIP"] = builder.clsclip_network
        else:
            plan.wrong.append(
                f"CLIP.MODEL {config.clip.model}: ClsCLIP needs a VisionTransformer (ViT-B-16)."
            )
    for name, make in makers.items():
        try:
            with torch.device("meta"):
                network: nn.Module = make()
        except TwostageError as error:
            plan.wrong.append(str(error))
            continue
        plan.parameters[name] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if config.task == "prompts":
        vectors = config.prompts.prefix + config.prompts.suffix
        plan.parameters["prompt"] = vectors * clip.text_width
    plan.parts += [f"{name}: {count:,} trainable parameters" for name, count in plan.parameters.items()]


def _component(section: str, kind: str, slot: SlotConfig, plan: Plan) -> None:
    if not slot.name:
        return
    try:
        component = registry.find(kind, slot.name)
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in slot.options.items()}
        made = registry.make_config(component, options)
    except TwostageError as error:
        plan.wrong.append(f"{section.upper()}: {error}")
        return
    changed = [
        f"{one.name.upper()}={getattr(made, one.name)}"
        for one in dataclasses.fields(made)
        if one.name in slot.options
    ]
    plan.parts.append(f"{section}: {slot.name} {' '.join(changed)}".rstrip())


def _prompts(config: Config, plan: Plan) -> None:
    options = config.clip
    builder = Builder(config)
    try:
        if options.text_features:
            count = f"text features of {options.text_features}"
        elif options.prompt:
            count = f"learned vectors of {options.prompt}"
        else:
            count = f"{len(builder.templates)} templates of {options.templates!r}"
        if options.stage_one_templates:
            count += f"; stage one: {len(builder.stage_one_templates)} of {options.stage_one_templates!r}"
    except TwostageError as error:
        plan.wrong.append(f"CLIP: {error}")
        return
    plan.parts.append(f"prompts: {count}")
    for key in ("prompt", "text_features", "text_names"):
        path = getattr(options, key)
        if path and not Path(path).is_file():
            plan.missing.append(f"CLIP.{key.upper()}: {path} is not there.")


def _weights(config: Config, plan: Plan) -> None:
    wanted = {"MODEL.WEIGHTS": config.model.weights, "MODEL.CLSCLIP_WEIGHTS": config.model.clsclip_weights}
    if config.task == "self_training" and config.self_training.start not in ("scratch", "teacher"):
        wanted["SELF_TRAINING.START"] = config.self_training.start
    for key, given in wanted.items():
        if not given:
            continue
        try:
            path = Path(shipped(given))
        except ConfigError as error:
            plan.wrong.append(str(error))
            continue
        if path.is_file():
            plan.parts.append(f"{key}: {path}")
        else:
            plan.missing.append(f"{key}: {path} is not there.")


def _dataset(name: str, config: Config, plan: Plan) -> str:
    """Gives the name that results have: a folder's is its last part."""
    try:
        dataset = catalog.get(name, config.datasets.root)
    except DatasetError as error:
        known = name.startswith("folder:") or name.partition("@")[0] in catalog.names()
        (plan.missing if known else plan.wrong).append(f"data set {name}: {error}")
        return name
    seen = dataset.vocabulary.seen
    flags = "" if seen is None else f", {sum(seen)} seen"
    plan.parts.append(f"data set {name}: {len(dataset)} photos, {len(dataset.vocabulary)} classes{flags}")
    if config.task == "clsclip":
        _folds(config, dataset, plan)
    return dataset.name


def _folds(config: Config, dataset: SegmentationDataset, plan: Plan) -> None:
    try:
        splits = [split_for(course, dataset) for course in folds_of(config)]
    except TwostageError as error:
        plan.wrong.append(str(error))
        return
    for course, split in zip(folds_of(config), splits, strict=True):
        which = f"fold {course.clsclip.fold[0]}" if course.clsclip.fold else "the data set's own split"
        held_out = ", ".join(dataset.vocabulary.shown[position] for position in split.held_out)
        plan.parts.append(f"{dataset.name}, {which}: {len(split.base)} classes learned, held out: {held_out}")


def _test_time(config: Config, plan: Plan) -> None:
    try:
        extra = at_test_time(config)
    except TwostageError as error:
        plan.wrong.append(str(error))
        return
    views = extra.views
    if not views.plain:
        sizes = ", ".join(str(size.min_size) for size in views.sizes) or "test size"
        mirrored = ", each mirrored too" if views.flip else ""
        window = f", windows of {', '.join(map(str, views.windows))}" if any(views.windows) else ""
        plan.parts.append(f"views: {sizes}{window}{mirrored}")
    if extra.crf is not None:
        plan.parts.append(f"random field: {extra.crf.iterations} steps, unary {extra.crf.unary}")


def _measurement(config: Config, names: list[str], plan: Plan) -> None:
    """names: of the data sets of DATASETS.TEST, as results have them."""
    known: Sequence[str] = ALL_SYSTEMS
    metrics = expected.PAIR_METRICS if config.task == "clsclip" else expected.METRICS
    if config.task == "clsclip":
        try:
            known = [system_of(config) + name for name in rule_of(config).names]
        except TwostageError as error:
            plan.wrong.append(str(error))
            return
    for name in config.test.systems:
        if name not in ALL_SYSTEMS:
            plan.wrong.append(f"TEST.SYSTEMS: unknown system {name!r}.{nearest(name, ALL_SYSTEMS)}")
    try:
        rows = expected.parse(config.test.expected_results, names, config.test.systems or known, metrics)
    except ConfigError as error:
        plan.wrong.append(str(error))
        return
    plan.parts += [
        f"expected: {row.dataset}, {row.system}, {row.metric} {row.percent:g} +- {row.tolerance:g}"
        for row in rows
    ]
