"""A segmenter that looks at each photo once: what its parts said is kept in a folder and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.data.atomic import replacing
from twostage.interfaces import Ensemble
from twostage.runs.stored_evidence import StoreError, read_evidence, to_device, write_evidence
from twostage.segmenter import Segmenter, Words
from twostage.systems import names_masks
from twostage.types import Proposals, TextBank
from twostage.vocabulary import Vocabulary

META = "store.json"
Make = Callable[[], tuple[Segmenter, Words]]
"""Builds the networks and encodes the words; called at the first photo that is not stored, or never."""


class _Part:
    """Stands where a component would: what it says comes from the store."""

    def __init__(self, names_masks: bool = False) -> None:
        self.names_masks = names_masks

    def _asked(self, *arguments: Any) -> Any:
        raise AssertionError("a remembering segmenter asks its store, never its parts")

    propose = classify = predict = _asked


@dataclass(frozen=True)
class Remembering(Segmenter):
    """A Segmenter whose evidence is stored. folder: one .npz a photo, by its pixels; make: the real one.

    What was just measured is read back from its file too, so that first and later runs give the same labels.
    """

    folder: Path = Path()
    make: Make | None = None

    @torch.inference_mode()
    def gather(
        self, images: Sequence[Tensor], words: Words, given: Sequence[Proposals] | None = None
    ) -> list[Any]:
        """As Segmenter.gather; `words` are those of `make`.

        Raises:
            StoreError: proposals are given, which are not this store's.
        """
        if given is not None:
            raise StoreError(
                "A store keeps a system's own proposals: measure the oracle of masks without it."
            )
        found = []
        for image in images:
            path = self.folder / f"{_pixels(image)}.npz"
            if not path.exists():
                assert self.make is not None
                real, own_words = self.make()
                write_evidence(path, real.gather([image], own_words)[0])
            evidence = read_evidence(path)
            found.append(evidence if self.device is None else to_device(evidence, self.device))
        return found


def remembering(
    folder: Path, ensemble: Ensemble, device: torch.device, make: Make
) -> tuple[Segmenter, Words]:
    """The segmenter of a store and its vocabulary; a new store asks `make` at once what its parts are.

    Raises:
        StoreError: the store's own description is damaged.
    """
    path = folder / META
    if not path.exists():
        _describe(path, *make())
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(tuple(synonyms) for synonyms in told["names"])
        seen = None if told["seen"] is None else tuple(told["seen"])
        vocabulary = Vocabulary(names, seen, tuple(told["label_ids"]))
        stage_one, parts = bool(told["names_masks"]), set(told["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: the store's description is damaged ({error}). Remove {folder}.") from error
    segmenter = Remembering(
        ensemble,
        proposals=_Part(stage_one) if "proposals" in parts else None,
        classifier=_Part() if "classifier" in parts else None,
        dense=_Part() if "dense" in parts else None,
        device=device,
        folder=folder,
        make=make,
    )
    return segmenter, Words(vocabulary, _unspoken(len(vocabulary)))


def _describe(path: Path, segmenter: Segmenter, words: Words) -> None:
    if segmenter.pixels is not None or hasattr(segmenter.proposals, "propose_from_labels"):
        raise StoreError(
            "Per-pixel networks and oracles of masks are not stored: measure them without a store."
        )
    vocabulary = words.vocabulary
    told = {
        "names": vocabulary.names,
        "seen": vocabulary.seen,
        "label_ids": vocabulary.label_ids,
        "parts": [
            part for part in ("proposals", "classifier", "dense") if getattr(segmenter, part) is not None
        ],
        "names_masks": names_masks(segmenter.proposals),
    }
    with replacing(path) as stream:
        stream.write((json.dumps(told, ensure_ascii=False) + "\n").encode())


def _unspoken(classes: int) -> TextBank:
    """A text bank that nobody asks: the store speaks of the classes already."""
    return TextBank(torch.eye(classes), torch.arange(classes), classes)


def _pixels(image: Tensor) -> str:
    """40 hex digits over size and pixels of an RGB uint8 image."""
    header = "x".join(map(str, image.shape)).encode()
    content = image.contiguous().cpu().numpy().tobytes()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
