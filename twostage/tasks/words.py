"""What every training against words has in common: one network, one vocabulary, one text bank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import nn

from twostage.config import SolverConfig
from twostage.engine.checkpoint import CheckpointError, load_strictly
from twostage.engine.optimizer import group_parameters
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError

Network = TypeVar("Network", bound=nn.Module)


class _Configured(Protocol):
    """What a network says of its making."""

    @property
    def config(self) -> Any: ...


class WordsTask(Generic[Network]):
    """A network on its device that learns to speak of the classes of a vocabulary; `losses` is all that the
    tasks add.

    network: its attribute `config` is the dataclass it was made from; text: one row or more for each class of
    `vocabulary`, which holds the trained (seen) classes only and whose order the class numbers of the batches
    follow; pseudo: names of the classes among them whose labels a model made, which the checkpoint remembers.

    Raises:
        VocabularyError: the text bank is not one of this vocabulary.
    """

    def __init__(
        self,
        network: Network,
        text: TextBank,
        vocabulary: Vocabulary,
        solver: SolverConfig,
        pseudo: Sequence[str] = (),
    ) -> None:
        if text.num_classes != len(vocabulary):
            raise VocabularyError(
                f"{type(self).__name__}: text of {text.num_classes} classes, a vocabulary of "
                f"{len(vocabulary)}."
            )
        self._network, self._solver = network, solver
        self.vocabulary, self.pseudo = vocabulary, tuple(pseudo)
        self._text = text.to(self.device)

    @property
    def module(self) -> Network:
        """The network."""
        return self._network

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self._network.parameters()).device

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups by backbone or head and by kind of decay, as SOLVER says."""
        return group_parameters(self._network, self._solver)

    def state_dict(self) -> dict[str, Any]:
        """{"model": tensors, "vocabulary": {"names": synonyms of each class}, "network": its options}.

        The vocabulary also says "pseudo", names of classes, where a model made some of the labels.
        """
        words: dict[str, Any] = {"names": [list(synonyms) for synonyms in self.vocabulary.names]}
        if self.pseudo:
            words["pseudo"] = list(self.pseudo)
        return {
            "model": self._network.state_dict(),
            "vocabulary": words,
            "network": dataclasses.asdict(cast(_Configured, self._network).config),
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        """Loads the network strictly. Resuming needs the same vocabulary; mere weights may come from another.

        Raises:
            VocabularyError: resuming from a checkpoint of another vocabulary.
            CheckpointError: the weights do not fit.
        """
        if resuming:
            require_same_vocabulary(trained_vocabulary(state, where), self.vocabulary, where)
        load_strictly(self._network, state["model"], where)


def trained_vocabulary(state: Mapping[str, Any], where: str) -> Vocabulary:
    """The classes that a checkpoint was trained on, all seen: what evaluation matches by name (`with_seen`).

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    names = (state.get("vocabulary") or {}).get("names")
    if not names:
        raise CheckpointError(f"{where} does not say which classes it was trained on (entry 'vocabulary').")
    return Vocabulary(tuple(tuple(synonyms) for synonyms in names), seen=(True,) * len(names))


def require_same_vocabulary(stored: Vocabulary, own: Vocabulary, where: str) -> None:
    """Raises VocabularyError, with what differs, where a checkpoint's classes are not those of the run that
    wants to go on.
    """
    if stored.names == own.names:
        return
    added = [name for name in own.shown if name not in stored.shown]
    lost = [name for name in stored.shown if name not in own.shown]
    what = "; ".join(
        text
        for text, found in (
            (f"new here: {', '.join(added[:10])}", added),
            (f"missing here: {', '.join(lost[:10])}", lost),
            ("the same names in another order or with other synonyms", not added and not lost),
        )
        if found
    )
    raise VocabularyError(
        f"{where} was trained on another vocabulary ({len(stored)} classes, here {len(own)}; {what}). "
        "Resume with the data set it was trained on, or start anew from its weights with MODEL.WEIGHTS."
    )
