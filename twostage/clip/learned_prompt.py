"""Learned words around a class name: vectors in place of a template's tokens, one set for all classes.

Prompt learning after Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), in the form of
Xu et al. (ECCV 2022): start, prefix vectors, the name's tokens, suffix vectors, a full stop, end. Shapes: n
prefix and m suffix vectors, W width of the text tower, T names, L tokens, C context length, D joint width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twostage.clip.text_bank import LogitScale, rows_of, scale_of
from twostage.clip.text_tower import TextTower
from twostage.errors import TwostageError
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary

INIT_STD = 0.02
"""Deviation of fresh vectors (Zhou et al.); that of CLIP's own token embeddings is of this size too."""


class LearnedPromptError(TwostageError):
    """Prompt vectors do not fit the text tower, a name, or the file they should come from."""


class PromptableClip(Protocol):
    """The part of `ClipModel` that prompt learning needs."""

    name: str
    text_tower: TextTower

    @property
    def digest(self) -> str: ...

    @property
    def logit_scale(self) -> float: ...

    @property
    def device(self) -> torch.device: ...

    def tokenize(self, texts: Sequence[str]) -> Tensor: ...


class NameTokens(NamedTuple):
    """Token ids, checked to fit: start, full stop, end, and those of each name."""

    start: int
    stop: int
    end: int
    names: list[list[int]]


class LearnedPrompt(nn.Module):
    """vectors: (n + m, W) float32 parameter, the prefix first; `encode` puts them around names.

    The text tower is no part of this module: an optimiser or `train()` reaches the vectors alone.

    Raises:
        LearnedPromptError: no vector at all.
    """

    def __init__(self, prefix: Tensor, suffix: Tensor | None = None) -> None:
        """prefix: (n, W), suffix: (m, W) or None; both are copied."""
        super().__init__()
        parts = [prefix] if suffix is None else [prefix, suffix]
        if any(part.ndim != 2 or part.shape[1] != prefix.shape[-1] for part in parts) or not sum(
            map(len, parts)
        ):
            raise LearnedPromptError(
                "LearnedPrompt: expected one or more vectors of one width, got "
                f"{' and '.join(str(tuple(part.shape)) for part in parts)}."
            )
        self.num_prefix = len(prefix)
        self.vectors = nn.Parameter(torch.cat(parts).detach().float().clone())
        self._kept: tuple[str, dict[tuple[str, tuple[str, ...]], Tensor]] = ("", {})

    @classmethod
    def random(cls, prefix: int, suffix: int, width: int, seed: int) -> LearnedPrompt:
        """Fresh vectors from N(0, 0.02), drawn from `seed` alone."""
        drawn = INIT_STD * torch.randn(prefix + suffix, width, generator=torch.Generator().manual_seed(seed))
        return cls(drawn[:prefix], drawn[prefix:])

    @property
    def num_suffix(self) -> int:
        """m."""
        return len(self.vectors) - self.num_prefix

    @property
    def width(self) -> int:
        """W."""
        return self.vectors.shape[1]

    @property
    def digest(self) -> str:
        """16 hex digits over the vectors and their places."""
        total = hashlib.sha256(f"{self.num_prefix} {tuple(self.vectors.shape)}".encode())
        total.update(self.vectors.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    def start_with(self, clip: PromptableClip, words: str) -> None:
        """Put the token embeddings of `words` right before the name, as in "a photo of a".

        Raises:
            LearnedPromptError: more tokens than prefix vectors.
        """
        row = clip.tokenize([words])
        ids = row[0, 1 : int(clip.text_tower.end_positions(row))].to(clip.device)
        if len(ids) > self.num_prefix:
            raise LearnedPromptError(
                f"The words {words!r} are {len(ids)} tokens, but there are {self.num_prefix} vectors before "
                "the name. Take fewer words or more vectors (PROMPTS.PREFIX)."
            )
        with torch.no_grad():
            place = slice(self.num_prefix - len(ids), self.num_prefix)
            self.vectors[place] = clip.text_tower.embed(ids).to(self.vectors)

    def encode(self, clip: PromptableClip, names: Sequence[str] | NameTokens, chunk: int = 256) -> Tensor:
        """(T, D) float32 unit rows on CLIP's device; gradients reach the vectors.

        names: or, to spare the work in a loop, what `tokens` made of them.
        Names of similar length share a chunk, which is cut to its longest. With more than one chunk the
        activations of a chunk are computed again in the backward pass, so that memory stays that of one.

        Raises:
            LearnedPromptError: vectors of another width, a tower in which prompts cannot be cut, a name that
            does not fit. ClipError: no name, or one longer than the context by itself.
        """
        tokens = names if isinstance(names, NameTokens) else self.tokens(clip, names)
        order = sorted(range(len(tokens.names)), key=lambda i: len(tokens.names[i]))
        parts = [order[i : i + chunk] for i in range(0, len(order), chunk)]
        rows = []
        for part in parts:
            given = (self.vectors, clip, tokens, part)
            if len(parts) > 1 and torch.is_grad_enabled():
                rows.append(checkpoint(self._encode_part, *given, use_reentrant=False))
            else:
                rows.append(self._encode_part(*given))
        back = torch.argsort(torch.tensor(order, device=clip.device))
        return F.normalize(torch.cat(rows)[back], dim=-1)

    def _encode_part(
        self, vectors: Tensor, clip: PromptableClip, tokens: NameTokens, part: list[int]
    ) -> Tensor:
        """(len(part), D) float32, not normalised."""
        tower, before, learned = clip.text_tower, self.num_prefix, len(vectors)
        longest = max(len(tokens.names[i]) for i in part) + learned + 3
        ids, places, ends = list[list[int]](), list[list[int]](), list[int]()
        for name in (tokens.names[i] for i in part):
            first, rest = [tokens.start] + before * [0], (learned - before) * [0]
            row = [*first, *name, *rest, tokens.stop, tokens.end]
            ends.append(len(row) - 1)
            ids.append(row + (longest - len(row)) * [tokens.end])  # behind the end nothing matters
            place = [learned, *range(before), *(len(name) * [learned]), *range(before, learned)]
            places.append(place + (longest - len(place)) * [learned])
        embedded = tower.embed(torch.tensor(ids, device=clip.device))
        # index of a vector for each token; `learned` stands for the token's own embedding
        taken = torch.tensor(places, device=clip.device)
        own = torch.cat([vectors.to(embedded), embedded.new_zeros(1, vectors.shape[1])])[taken]
        mixed = torch.where((taken < learned)[..., None], own, embedded)
        return tower.encode_embeddings(mixed, torch.tensor(ends, device=clip.device)).float()

    def tokens(self, clip: PromptableClip, names: Sequence[str]) -> NameTokens:
        """The names as `encode` takes them; raises what it raises."""
        tower = clip.text_tower
        if not tower.causal:
            raise LearnedPromptError(
                f"{clip.name}: its text tower is not a causal one pooled at the end token, so prompt vectors "
                "cannot be put into it. Use templates (CLIP.TEMPLATES) with this model."
            )
        if self.width != tower.width:
            raise LearnedPromptError(
                f"{clip.name}: its text tower is {tower.width} wide, the prompt vectors are {self.width}. "
                "They were learned for another CLIP model; learn them anew for this one."
            )
        table = clip.tokenize(list(names))
        ends = tower.end_positions(table).tolist()
        rows = [row[1:end] for row, end in zip(table.tolist(), ends, strict=True)]
        room = tower.context_length - len(self.vectors) - 3
        for name, row in zip(names, rows, strict=True):
            if len(row) > room:
                raise LearnedPromptError(
                    f"{clip.name}: the name {name!r} is {len(row)} tokens, but {len(self.vectors)} vectors "
                    f"leave room for {max(room, 0)} of the {tower.context_length} of the text tower. "
                    "Shorten the name, or learn fewer vectors."
                )
        start, stop, end = clip.tokenize(["."])[0, :3].tolist()
        return NameTokens(start, stop, end, rows)

    def features(self, clip: PromptableClip, names: Sequence[str]) -> Tensor:
        """(T, D) like `encode`, without gradients, on the CPU; computed once for each list of names as long
        as the vectors stay as they are.
        """
        digest = self.digest
        if self._kept[0] != digest:
            self._kept = (digest, {})
        key = (clip.digest, tuple(names))
        if key not in self._kept[1]:
            with torch.no_grad():
                self._kept[1][key] = self.encode(clip, names).cpu()
        return self._kept[1][key]


def learned_text_bank(
    clip: PromptableClip, vocabulary: Vocabulary, prompt: LearnedPrompt, logit_scale: LogitScale = "paper"
) -> TextBank:
    """Every name of a vocabulary in the learned prompt, synonyms as rows; build_text_bank's counterpart.

    logit_scale: "paper" (100), "model" (what the model learned) or a number.

    Raises:
        LearnedPromptError: the prompt does not fit the model, or a name does not fit into it.
    """
    names, class_of = rows_of(vocabulary)
    return TextBank(prompt.features(clip, names), class_of, len(vocabulary), scale_of(logit_scale, clip))
