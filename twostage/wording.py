"""What a class name is wrapped in for each stage: templates, or learned prompt vectors, and the text features
that come of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from twostage.checkpoints import Weights, published_prompts
from twostage.clip.learned_prompt import LearnedPrompt, PromptableClip, learned_text_bank
from twostage.clip.model import ClipModel
from twostage.clip.prompt_file import load_prompt
from twostage.clip.prompts import SLOT, load_templates
from twostage.clip.text_bank import LogitScale, build_text_bank, load_text_bank
from twostage.config import ClipConfig
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary
from twostage.weights import cache_folder

logger = logging.getLogger(__name__)

PAPER_TEMPLATE = "single"
"""What stage one was trained with where only stage two's prompts were learned (Xu et al., 2022, on VOC)."""
PUBLISHED_SUFFIXES = (".pth", ".pt", ".pkl")


@dataclass(frozen=True)
class Prompts:
    """Learned prompts of both stages, None where a stage fills templates.

    stage_one_templates: CLIP.TEMPLATES' kind of value where stage one has templates of its own.
    """

    crops: LearnedPrompt | None = None
    stage_one: LearnedPrompt | None = None
    stage_one_templates: str = ""

    @property
    def separate(self) -> bool:
        """Whether stage one reads other text features than stage two."""
        return bool(self.stage_one_templates) or self.stage_one is not self.crops


def choose_prompts(
    options: ClipConfig, weights: Callable[[], Weights | None], clip: Callable[[], PromptableClip]
) -> Prompts:
    """CLIP.PROMPT before what is inside MODEL.WEIGHTS; CLIP.STAGE_ONE_TEMPLATES before both, in stage one.

    Raises:
        LearnedPromptError: the file of CLIP.PROMPT is unusable.
    """
    own = options.stage_one_templates
    if options.text_features:
        return Prompts(stage_one_templates=own)
    if options.prompt:
        prompt = _from_file(options.prompt, clip())
        return Prompts(prompt, None if own else prompt, own)
    opened = weights()
    inside = None if opened is None else opened.published
    if inside is None or (inside.prompt is None and inside.region_prompt is None):
        return Prompts(stage_one_templates=own)
    device = clip().device
    shared = None if inside.prompt is None else LearnedPrompt(inside.prompt).to(device)
    if not inside.separate:
        logger.info("Prompts: the learned vectors inside %s", inside.report.where)
        return Prompts(shared, None if own else shared, own)
    region = None if inside.region_prompt is None else LearnedPrompt(inside.region_prompt).to(device)
    fixed = own or ("" if shared is not None else PAPER_TEMPLATE)
    logger.info(
        "Prompts: stage two takes the learned vectors inside %s, stage one %s",
        inside.report.where,
        f"the templates {fixed!r}" if fixed else "its own",
    )
    return Prompts(region, None if fixed else shared, fixed)


def _from_file(path: str, clip: PromptableClip) -> LearnedPrompt:
    """The vectors of a file of TASK prompts, or of a published checkpoint of prompts."""
    if Path(path).suffix in PUBLISHED_SUFFIXES:
        return LearnedPrompt(published_prompts(path)).to(clip.device)
    prompt, facts = load_prompt(path, clip)
    logger.info(
        "Prompt %s: %d vectors learned on %d names", prompt.digest, len(prompt.vectors), len(facts.names)
    )
    return prompt


class Texts:
    """Text features of vocabularies for both stages, each made once.

    clip, weights: called when needed; weights gives MODEL.WEIGHTS, opened, or None where there are none.
    """

    def __init__(
        self,
        options: ClipConfig,
        clip: Callable[[], ClipModel],
        weights: Callable[[], Weights | None],
        device: torch.device,
    ) -> None:
        self._options, self._clip, self._weights, self._device = options, clip, weights, device
        self._made: dict[tuple[Vocabulary, bool], TextBank] = {}

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The templates of CLIP.TEMPLATES: a set by name, a file, or one template."""
        return _templates(self._options.templates)

    @cached_property
    def stage_one_templates(self) -> tuple[str, ...]:
        """Those of CLIP.STAGE_ONE_TEMPLATES, or the same."""
        own = self._options.stage_one_templates
        return _templates(own) if own else self.templates

    @cached_property
    def prompts(self) -> Prompts:
        """The learned prompts in use."""
        return choose_prompts(self._options, self._weights, self._clip)

    @cached_property
    def wording(self) -> tuple[str, ...]:
        """What stage two shows CLIP, for a results file: the templates, which vectors were learned, or the
        file of text features that takes their place.
        """
        if self._options.text_features:
            return (f"text features of {self._options.text_features}",)
        learned = self.prompts.crops
        if learned is None:
            return self.templates
        return (f"{len(learned.vectors)} learned vectors, digest {learned.digest}",)

    def crops(self, vocabulary: Vocabulary) -> TextBank:
        """For stage two: from CLIP.TEXT_FEATURES, from learned vectors or from templates."""
        return self._kept(vocabulary, False)

    def stage_one(self, vocabulary: Vocabulary) -> TextBank:
        """For stage one: the same unless its prompts differ."""
        return self._kept(vocabulary, self.prompts.separate)

    def _kept(self, vocabulary: Vocabulary, for_stage_one: bool) -> TextBank:
        key = (vocabulary, for_stage_one)
        if key not in self._made:
            make = self._of_stage_one if for_stage_one else self._of_crops
            self._made[key] = make(vocabulary).to(self._device)
        return self._made[key]

    def _of_crops(self, vocabulary: Vocabulary) -> TextBank:
        options = self._options
        if options.text_features:
            bank = load_text_bank(options.text_features, vocabulary, names=options.text_names or None)
            scale = options.logit_scale
            return replace(bank, logit_scale=bank.logit_scale if scale is None else scale)
        return self._encoded(vocabulary, self.prompts.crops, self.templates)

    def _of_stage_one(self, vocabulary: Vocabulary) -> TextBank:
        own = self.prompts.stage_one_templates
        return self._encoded(vocabulary, self.prompts.stage_one, _templates(own) if own else self.templates)

    def _encoded(
        self, vocabulary: Vocabulary, learned: LearnedPrompt | None, templates: tuple[str, ...]
    ) -> TextBank:
        options = self._options
        scale: LogitScale = "model" if options.logit_scale is None else options.logit_scale
        if learned is not None:
            return learned_text_bank(self._clip(), vocabulary, learned, scale)
        return build_text_bank(
            self._clip(),
            vocabulary,
            templates,
            logit_scale=scale,
            cache_dir=cache_folder() / "text" if options.cache_dir == "auto" else options.cache_dir or None,
        )


def _templates(given: str) -> tuple[str, ...]:
    return load_templates([given] if SLOT in given else given)
