"""A ready system for one's own photos and words: load once, segment many."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage import zoo
from twostage.builder import Builder
from twostage.config import Config, load_config
from twostage.data.image_io import read_image
from twostage.errors import TwostageError
from twostage.segmenter import Segmenter, Words
from twostage.types import Segmentation
from twostage.vocabulary import Vocabulary

Classes = str | Sequence[str] | Vocabulary


class System:
    """A segmenter with its text tower.

    system = twostage.load("shapes")
    result = system.segment("photo.jpg", "cat, sofa|couch, other")
    result.labels            # (H, W) int32, index into the classes, -1 where nothing speaks
    """

    def __init__(self, config: Config, builder: Builder | None = None) -> None:
        """builder: makes the parts, where they are not the configuration's own."""
        self.config = config
        self._builder = Builder(config) if builder is None else builder
        self._segmenter = _confident(self._builder.segmenter())
        self._words: dict[Vocabulary, Words] = {}

    def words(self, classes: Classes) -> Words:
        """The classes with their text features, encoded once a list."""
        vocabulary = as_vocabulary(classes)
        if vocabulary not in self._words:
            words = self._builder.words(vocabulary)
            self._words |= {vocabulary: words, words.vocabulary: words}
        return self._words[vocabulary]

    def segment(self, photo: str | Path | Tensor, classes: Classes, image_id: str = "") -> Segmentation:
        """One photo (a file, or RGB uint8 (3, H, W)) -> a label map of its size.

        image_id: by which PROPOSALS.NAME cached looks masks up where it does not know the pixels; by default
        the file's name without its ending.

        Raises:
            ImageReadError: the file is no readable photo. VocabularyError: no class is given.
            TwostageError: a tensor of another kind.
        """
        image = photo if isinstance(photo, Tensor) else read_image(photo)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise TwostageError(
                f"segment: expected RGB uint8 (3, H, W), got {tuple(image.shape)} {image.dtype}."
            )
        if not isinstance(photo, Tensor):
            image_id = image_id or Path(photo).stem
        return self._segmenter.segment([image], self.words(classes), [image_id])[0]

    def read_with(self, preset: str, guest: str = "") -> System:
        """The same system, words and networks shared, whose dense head reads CLIP in another way.

        guest: the second vision model of presets that ask one, as DENSE.OPTIONS.GUEST.

        Raises:
            TwostageError: its dense head is not a readout, or its CLIP cannot be read so.
        """
        slot = self.config.dense
        if slot.name != "readout":
            raise TwostageError(
                f"DENSE.NAME is {slot.name!r}, which has no presets: set DENSE.NAME readout to read CLIP "
                f"with {preset!r}."
            )
        slot = dataclasses.replace(slot, options={**slot.options, "preset": preset, "guest": guest})
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, dense=slot)
        head = self._builder.component("dense", slot)
        other._segmenter = dataclasses.replace(self._segmenter, dense=head)
        return other

    def look(self, image: Tensor, classes: Classes) -> tuple[Segmentation, Tensor]:
        """image: RGB uint8 (3, H, W) -> what the system makes of it, and what its dense head alone says:
        (K, h, w) float32 logits, divided by the temperature at which the ensemble takes them.

        Raises:
            TwostageError: there is no dense head.
        """
        if self._segmenter.dense is None:
            raise TwostageError("DENSE.NAME is empty, so there is no dense map: set DENSE.NAME readout.")
        words, ensemble = self.words(classes), self._segmenter.ensemble
        [evidence] = self._segmenter.gather([image], words)
        assert evidence.dense is not None
        found = self._segmenter.label(image, words, {"": ensemble}, evidence)[""]
        settings: Any = getattr(ensemble, "config", None)
        return found, evidence.dense.logits / float(getattr(settings, "dense_temperature", 1.0))


def _confident(segmenter: Segmenter) -> Segmenter:
    """The same flow with an ensemble that also says how sure it is of every pixel, where it can."""
    ensemble: Any = segmenter.ensemble
    if not any(field.name == "confidence" for field in dataclasses.fields(ensemble.config)):
        return segmenter
    sure = type(ensemble)(dataclasses.replace(ensemble.config, confidence=True))
    return dataclasses.replace(segmenter, ensemble=sure)


def as_vocabulary(classes: Classes) -> Vocabulary:
    """Words, a text file with a class a line, or a vocabulary."""
    if isinstance(classes, Vocabulary):
        return classes
    if isinstance(classes, str) and "," not in classes and Path(classes).suffix == ".txt":
        return Vocabulary.from_file(classes)
    return Vocabulary.from_words(classes)


def load(model: str = "shapes", overrides: Sequence[str] = ()) -> System:
    """A ready-made system by name (see `twostage models`), or the configuration file of one's own.

    overrides: options as on the command line, "KEY=VALUE".
    """
    return System(load_config(config_path(model), list(overrides)))


def config_path(model: str) -> Path:
    """The file behind a name of `twostage models`, or the given .yaml file.

    Raises:
        ZooError: no such system; the message names the nearest.
    """
    return Path(model) if Path(model).suffix in (".yaml", ".yml") else zoo.path(model)
