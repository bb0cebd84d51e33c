"""Which learned prompts a run uses in which stage: those of CLIP.PROMPT, or those inside MODEL.WEIGHTS."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twostage.checkpoints import Weights, published_prompts
from twostage.clip.learned_prompt import LearnedPrompt, PromptableClip
from twostage.clip.prompt_file import load_prompt
from twostage.config import ClipConfig

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
    options: ClipConfig, weights: Weights | None, clip: Callable[[], PromptableClip]
) -> Prompts:
    """CLIP.PROMPT before what is inside MODEL.WEIGHTS; CLIP.STAGE_ONE_TEMPLATES before both, in stage one.

    Raises:
        LearnedPromptError: the file of CLIP.PROMPT is unusable.
    """
    own = options.stage_one_templates
    if options.text_features:
        return Prompts(stage_one_templates=own)
    if options.prompt:
        if Path(options.prompt).suffix in PUBLISHED_SUFFIXES:
            prompt = LearnedPrompt(published_prompts(options.prompt)).to(clip().device)
        else:
            prompt, _ = load_prompt(options.prompt, clip())
        return Prompts(prompt, None if own else prompt, own)
    inside = None if weights is None else weights.published
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
