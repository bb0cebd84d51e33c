"""Learned prompt vectors on disk: a .safetensors file that says what they were learned for."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from twostage.clip.learned_prompt import LearnedPrompt, LearnedPromptError, PromptableClip
from twostage.clip.text_cache import write_tensors

logger = logging.getLogger(__name__)
_KIND = "twostage prompt"


@dataclass(frozen=True)
class PromptFacts:
    """Where prompt vectors come from.

    clip, digest: name and digest of the CLIP model they were learned with; names: the class names they were
    learned on, synonyms included; mode: how crops were made; seed: of the training; score: what the choice
    among seeds was made by, percent, or None.
    """

    clip: str = ""
    digest: str = ""
    names: tuple[str, ...] = ()
    mode: str = ""
    seed: int | None = None
    score: float | None = None


def save_prompt(path: str | Path, prompt: LearnedPrompt, facts: PromptFacts) -> None:
    """Write the vectors and the facts; the file is whole or not there."""
    vectors = prompt.vectors.detach().cpu()
    tensors = {"prefix": vectors[: prompt.num_prefix], "suffix": vectors[prompt.num_prefix :]}
    info = {"kind": json.dumps(_KIND), **{name: json.dumps(value) for name, value in asdict(facts).items()}}
    write_tensors(Path(path), tensors, info)


def load_prompt(path: str | Path, clip: PromptableClip | None = None) -> tuple[LearnedPrompt, PromptFacts]:
    """The prompt on the CPU, and its facts. clip: the model it is meant for; the vectors move to its device.

    Raises:
        LearnedPromptError: no such file, damaged, not a prompt, or of another width than the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise LearnedPromptError(
            f"There is no prompt file {path}. Learn one (TASK prompts writes OUTPUT_DIR/prompt.safetensors), "
            "or leave CLIP.PROMPT empty to use CLIP.TEMPLATES."
        )
    try:
        with safe_open(path, framework="pt") as file:
            info = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dictionary
        facts = _facts(info)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise LearnedPromptError(f"{path} is damaged or no .safetensors file: {error}") from error
    if info.get("kind") != json.dumps(_KIND) or set(tensors) != {"prefix", "suffix"}:
        raise LearnedPromptError(
            f"{path} holds no learned prompt: expected the tensors prefix and suffix as TASK prompts writes "
            f"them, got {', '.join(sorted(tensors)) or 'none'}."
        )
    prompt = LearnedPrompt(tensors["prefix"], tensors["suffix"])
    if clip is not None:
        _require_fit(prompt, facts, clip, path)
        prompt = prompt.to(clip.device)
    return prompt, facts


def _facts(info: dict[str, str]) -> PromptFacts:
    known = {name: json.loads(info[name]) for name in asdict(PromptFacts()) if name in info}
    return PromptFacts(**{**known, "names": tuple(known.get("names", ()))})


def _require_fit(prompt: LearnedPrompt, facts: PromptFacts, clip: PromptableClip, path: Path) -> None:
    if prompt.width != clip.text_tower.width:
        raise LearnedPromptError(
            f"{path}: the prompt vectors are {prompt.width} wide, the text tower of {clip.name} is "
            f"{clip.text_tower.width}. They were learned for {facts.clip or 'another model'}: use CLIP.MODEL "
            "of that name, or learn a prompt for this model."
        )
    if facts.digest and facts.digest != clip.digest:
        logger.warning(
            "%s was learned with %s in other weights or another number format than this %s",
            path,
            facts.clip,
            clip.name,
        )
