"""An exported folder as a ready system: the same flow, with files in the place of its two networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twostage import registry
from twostage.builder import Builder
from twostage.classifiers.crops import CropClassifier
from twostage.config import Config, SlotConfig, parse_config
from twostage.errors import TwostageError
from twostage.export.manifest import (
    CLIP_IMAGE,
    MANIFEST,
    STAGE_ONE,
    WORDS,
    ExportError,
    Manifest,
    read_manifest,
)
from twostage.export.networks import OnnxImageTower, OnnxProposals
from twostage.export.parts import CROPS, MASKFORMER, exportable, in_fp32
from twostage.export.runtime import Session, require_packages
from twostage.export.words import StoredWords, read_words
from twostage.networks import Trained
from twostage.predict import Classes, System, as_vocabulary
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.segmenter import Words
from twostage.vocabulary import Vocabulary, nearest


class Deployed(Builder):
    """A builder whose networks are the files of a folder.

    Words that are stored there need no text tower; others are encoded by the configuration's own, where its
    weights are at hand.
    """

    def __init__(self, config: Config, folder: Path, manifest: Manifest, threads: int = 0) -> None:
        network: Any = None  # only its names are asked for
        super().__init__(config, Trained(network, manifest.trained_names))
        self.folder, self.manifest, self.threads = folder, manifest, threads
        facts = manifest.words
        self.stored: StoredWords | None = None
        if facts is not None:
            self.stored = read_words(folder / WORDS, facts.logit_scale)
        self.providers: dict[str, str] = {}
        """Who runs each file."""

    def component(self, kind: str, slot: SlotConfig) -> Any:
        """Files where the folder has them, the configuration's own parts elsewhere."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in slot.options.items()}
        if (kind, slot.name) == ("proposals", MASKFORMER):
            facts = self.manifest.stage_one
            config = registry.make_config(MaskFormerProposals, options)
            if facts is None:
                raise ExportError(f"PROPOSALS.NAME {MASKFORMER}: {self.folder} was exported without it.")
            return OnnxProposals(config, self._open(STAGE_ONE), facts)
        if (kind, slot.name) == ("classifiers", CROPS):
            tower = self.manifest.clip_image
            config = registry.make_config(CropClassifier, options)
            if tower is None:
                raise ExportError(f"CLASSIFIER.NAME {CROPS}: {self.folder} was exported without it.")
            if config.image_size and tower.image_size != (config.image_size, config.image_size):
                raise ExportError(
                    f"CLASSIFIER.OPTIONS.IMAGE_SIZE: {self.folder} takes crops of {tower.image_size} pixels, "
                    f"got {config.image_size}. Leave the option as it was, or export again with it."
                )
            limit = int(self.config.test.memory_gib * 2**30)
            return CropClassifier(config, OnnxImageTower(self._open(CLIP_IMAGE), tower), limit)
        return super().component(kind, slot)

    def _open(self, name: str) -> Session:
        session = Session(self.folder / name, self.manifest.files, self.device, self.threads)
        self.providers[name] = session.provider
        return session

    def words(self, vocabulary: Vocabulary) -> Words:
        """A vocabulary with its text features, stored ones where every name has one.

        Raises:
            ExportError: some have none, and the text tower is not at hand.
        """
        missing = None if self.stored is None else self.stored.missing(vocabulary)
        if self.stored is not None and not missing:
            return self.stored.words(self.flagged(vocabulary), self.device)
        try:
            self._require_same_clip()
            return super().words(vocabulary)
        except (TwostageError, OSError) as error:
            names = vocabulary.every_name if missing is None else missing
            known = () if self.stored is None else self.stored.names
            hint = nearest(names[0], known) if known else ""
            raise ExportError(
                f"{self.folder} has no text features of {', '.join(map(repr, names[:5]))}"
                f"{', ...' if len(names) > 5 else ''}.{hint} Export again with these words in --classes, or "
                f"name the text tower's weights in CLIP.PRETRAINED and MODEL.WEIGHTS: {error}"
            ) from error

    def _require_same_clip(self) -> None:
        """Words of one CLIP say nothing to the image tower of another."""
        tower = self.manifest.clip_image
        if tower is not None and not self.config.clip.text_features and self.clip.digest != tower.digest:
            raise ExportError(
                f"CLIP.MODEL and CLIP.PRETRAINED give {self.clip.name} with other weights than the "
                f"{tower.model} that was exported."
            )


def open_folder(
    folder: str | Path, classes: Classes | None = None, overrides: Sequence[str] = (), threads: int = 0
) -> tuple[System, Vocabulary]:
    """The system of a folder that `twostage export` wrote, and the classes to look for.

    classes: None takes the words that came with the folder; overrides: "KEY=VALUE"; threads: of onnxruntime,
    0 for as many as torch uses.

    Raises:
        ExportError: packages are missing, the folder is incomplete or not as it was exported, the options ask
            for parts that are not in it, or no words are given and none are stored.
    """
    require_packages()
    if threads < 0:
        raise ExportError(f"--threads: expected 0 or more, got {threads}.")
    folder = Path(folder)
    manifest = read_manifest(folder)
    asked = parse_config(manifest.config, str(folder / MANIFEST), overrides)
    config = in_fp32(exportable(asked)[0])
    if asked.classifier.options.get("skip_filled"):
        raise ExportError("CLASSIFIER.OPTIONS.SKIP_FILLED: the exported tower sees every patch; use --model.")
    for slot in ("dense", "pixels"):
        if getattr(asked, slot).name:
            raise ExportError(f"{slot.upper()}.NAME: a folder holds stage one and crops only; use --model.")
    if classes is None:
        if manifest.words is None:
            raise ExportError(
                f'{folder} comes without words: say which to look for, as in --classes "cat, sofa, other".'
            )
        classes = Vocabulary(manifest.words.classes)
    return System(config, Deployed(config, folder, manifest, threads)), as_vocabulary(classes)
