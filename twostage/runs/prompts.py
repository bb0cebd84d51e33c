"""Learning prompts, one training for each seed, and choosing the one that names held-out classes best.

One run of prompt learning says little: published results differ by several points between seeds. So some of
the seen classes are held out from every training; the prompt that names their regions best, all seen classes
competing, is kept. The unseen classes of the test set take no part in the choice.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from twostage.clip.learned_prompt import LearnedPrompt
from twostage.clip.prompt_file import save_prompt
from twostage.config import Config, ConfigError
from twostage.engine import distributed
from twostage.engine.checkpoint import CheckpointError
from twostage.evaluation.top_k import TopK
from twostage.runs.prompt_course import Course
from twostage.runs.prompt_report import Judged, best_seed, write_report
from twostage.runs.training import settled

logger = logging.getLogger(__name__)
FILE = "prompt.safetensors"


def train(config: Config, resume: bool = False) -> Path:
    """Learn a prompt for each of PROMPTS.SEEDS and keep the best; gives OUTPUT_DIR/prompt.safetensors.

    Each seed trains in OUTPUT_DIR/seed_N. With `resume` a finished seed is not trained again, and one that
    was interrupted goes on.

    Raises:
        ConfigError: options that contradict each other. TwostageError: no region of a class to learn, a
        name that does not fit, and what training raises.
    """
    config = settled(config)
    _require_sense(config)
    course = Course(config)
    learned: dict[int, LearnedPrompt] = {}
    for seed in dict.fromkeys(config.prompts.seeds):
        learned[seed] = course.learn(seed, resume)
    judged = {seed: Judged(course.score(prompt), course.judge(prompt)) for seed, prompt in learned.items()}
    best = best_seed(judged)
    path = Path(config.output_dir, FILE)
    if distributed.is_main():
        for seed, prompt in learned.items():
            save_prompt(course.folder(seed) / FILE, prompt, course.facts(seed, judged[seed].score))
        save_prompt(path, learned[best], course.facts(best, judged[best].score))
        write_report(course.builder, course.words, course.judge_plain(), judged, best)
    distributed.barrier()
    logger.info("The prompt of seed %d is in %s: use it with CLIP.PROMPT %s", best, path, path)
    return path


def evaluate(config: Config, resume: bool = False) -> dict[str, TopK]:
    """How well CLIP.PROMPT, or CLIP.TEMPLATES where there is none, names the true regions of DATASETS.TEST;
    resume: the prompt that a training left in OUTPUT_DIR.

    Raises:
        ConfigError: DATASETS.TEST is empty. CheckpointError: there is no such prompt.
    """
    if resume:
        path = Path(config.output_dir, FILE)
        if not path.is_file():
            raise CheckpointError(
                f"OUTPUT_DIR: there is no {path}. It is written when every seed is trained: go on with "
                "--resume alone, or name a prompt in CLIP.PROMPT."
            )
        config = dataclasses.replace(config, clip=dataclasses.replace(config.clip, prompt=str(path)))
    if not config.datasets.test:
        raise ConfigError("DATASETS.TEST is empty: name at least one data set to evaluate.")
    course = Course(config)
    found = course.judge_plain()
    if distributed.is_main():
        write_report(course.builder, course.words, found, {}, None)
    return found


def _require_sense(config: Config) -> None:
    clip, prompts = config.clip, config.prompts
    if clip.text_features:
        raise ConfigError(
            "TASK prompts learns through CLIP's text tower, so CLIP.TEXT_FEATURES has no place: empty it."
        )
    if clip.prompt:
        raise ConfigError("TASK prompts learns what CLIP.PROMPT would name: empty it.")
    if config.model.weights and clip.pretrained != "checkpoint":
        raise ConfigError(
            "TASK prompts trains no network, so MODEL.WEIGHTS has no place unless CLIP.PRETRAINED checkpoint "
            "takes CLIP from it: empty it. PROMPTS.INIT says what the vectors start from."
        )
    if not prompts.seeds:
        raise ConfigError("PROMPTS.SEEDS is empty: give one seed or more, as in [0, 1, 2].")
    if prompts.prefix + prompts.suffix == 0:
        raise ConfigError("PROMPTS.PREFIX and PROMPTS.SUFFIX are both 0: nothing would be learned.")
