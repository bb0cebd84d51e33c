"""Learning a prompt: regions of the seen classes come near to their names, and only the prompt gives way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from twostage.clip.learned_prompt import LearnedPrompt
from twostage.clip.pair import FrozenPair
from twostage.clip.text_bank import rows_of
from twostage.config import SolverConfig
from twostage.data.regions import RegionBatch
from twostage.engine.checkpoint import CheckpointError, load_strictly
from twostage.engine.optimizer import group_parameters
from twostage.tasks.region_views import FeatureBatch
from twostage.tasks.words import require_same_vocabulary, trained_vocabulary
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary


class PromptTask:
    """What the engine trains: the vectors. CLIP is frozen and in evaluation mode, and no part of `module`.

    vocabulary: the classes that compete in the loss; the class numbers of the batches follow its order.
    logit_scale: factor on cosines in the loss (the paper: 100).

    Raises:
        LearnedPromptError: the prompt does not fit the model, or a name does not fit into it.
    """

    def __init__(
        self,
        clip: FrozenPair,
        prompt: LearnedPrompt,
        vocabulary: Vocabulary,
        solver: SolverConfig,
        logit_scale: float = 100.0,
    ) -> None:
        self._clip, self._solver, self._scale = clip, solver, logit_scale
        self.prompt = prompt.to(clip.device)
        self.vocabulary = vocabulary
        names, self._class_of = rows_of(vocabulary)
        self._tokens = prompt.tokens(clip, names)

    @property
    def module(self) -> LearnedPrompt:
        """The prompt."""
        return self.prompt

    def losses(self, batch: RegionBatch | FeatureBatch) -> dict[str, Tensor]:
        """Cross entropy of the batch over the vocabulary; a class with synonyms is its best name."""
        if isinstance(batch, FeatureBatch):
            features = batch.features.to(self._clip.device)
        else:
            features = self._clip.encode_images(batch.pixels)
        rows = self.prompt.encode(self._clip, self._tokens)
        class_of = self._class_of.to(rows.device)
        logits = TextBank(rows, class_of, len(self.vocabulary), self._scale).logits(features)
        return {"loss_ce": F.cross_entropy(logits.float(), batch.classes.to(logits.device))}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, with SOLVER.WEIGHT_DECAY."""
        return group_parameters(self.prompt, self._solver)

    def state_dict(self) -> dict[str, Any]:
        """{"model": the vectors, "vocabulary": {"names": ...}, "prompt": what they were learned with}."""
        return {
            "model": self.prompt.state_dict(),
            "vocabulary": {"names": [list(synonyms) for synonyms in self.vocabulary.names]},
            "prompt": {
                "prefix": self.prompt.num_prefix,
                "clip": self._clip.name,
                "clip_digest": self._clip.digest,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        """Loads the vectors. Resuming needs the same classes and the same CLIP.

        Raises:
            VocabularyError: resuming from a checkpoint of other classes.
            CheckpointError: other vectors, or resuming with another CLIP model.
        """
        if resuming:
            require_same_vocabulary(trained_vocabulary(state, where), self.vocabulary, where)
            facts = state.get("prompt") or {}
            if facts.get("clip_digest") != self._clip.digest:
                raise CheckpointError(
                    f"{where} was written with {facts.get('clip')}, in other weights or another number "
                    f"format than this {self._clip.name}. Resume with the CLIP options of the run."
                )
            if facts.get("prefix") != self.prompt.num_prefix:
                raise CheckpointError(
                    f"{where} has {facts.get('prefix')} vectors before the name, here are "
                    f"{self.prompt.num_prefix}. Resume with the PROMPTS.PREFIX of the run."
                )
        load_strictly(self.prompt, state["model"], where)


def held_out_classes(vocabulary: Vocabulary, share: float) -> list[int]:
    """Positions of the classes kept from training: `share` of all, at least one, but never the last one left.

    A hash of the names decides, so the choice is the same for every seed, data set and order. Share 0: none.
    """
    if share <= 0:
        return []
    count = min(max(1, round(share * len(vocabulary))), len(vocabulary) - 1)
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in vocabulary.shown]
    return sorted(sorted(range(len(vocabulary)), key=lambda k: digests[k])[:count])
