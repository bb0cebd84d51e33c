"""From a configuration to objects: the parts of a run, each made at most once and only when asked for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from twostage import registry
from twostage.config import Config, SlotConfig
from twostage.data import same_words
from twostage.maskformer.network import MaskFormer
from twostage.network_builder import Networks
from twostage.networks import Trained
from twostage.ops.crf import DenseCrf
from twostage.segmenter import Segmenter, Words
from twostage.skipping import Skip
from twostage.test_time import TestTime
from twostage.types import TextBank
from twostage.views import TestSize, Views
from twostage.vocabulary import Vocabulary
from twostage.wording import Texts


class Builder(Networks):
    """Makes the parts of one run, each at most once and only when asked for."""

    def __init__(self, config: Config, trained: Trained[MaskFormer] | None = None) -> None:
        """trained: stage one's network where it is at hand already, in place of MODEL.WEIGHTS."""
        super().__init__(config, trained)
        self.texts = Texts(self.config.clip, lambda: self.clip, lambda: self.weights, self.device)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts of CLIP.TEMPLATES: a set by name, a file, or one template."""
        return self.texts.templates

    @property
    def stage_one_templates(self) -> tuple[str, ...]:
        """The same for stage one."""
        return self.texts.stage_one_templates

    def text(self, vocabulary: Vocabulary) -> TextBank:
        """Text features of a vocabulary for stage two; made once."""
        return self.texts.crops(vocabulary)

    def stage_one_text(self, vocabulary: Vocabulary) -> TextBank:
        """The same for stage one, whose prompts may differ."""
        return self.texts.stage_one(vocabulary)

    def component(self, kind: str, slot: SlotConfig) -> Any:
        """The component of one slot, or None where the slot is empty."""
        if not slot.name:
            return None
        component = registry.find(kind, slot.name)
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in slot.options.items()}
        config = registry.make_config(component, options)
        offered: dict[str, Callable[[], Any]] = {
            "clip": lambda: self.clip,
            "device": lambda: self.device,
            "network": lambda: self.trained.network,
            "pixel_network": lambda: self.trained_pixels.network,
            "make_clsclip": lambda: lambda: self.trained_clsclip.network,
            "make_proposals": lambda: self.proposals,
            "compiled": lambda: self.config.clip.compile,
            "max_memory": lambda: int(self.config.test.memory_gib * 2**30),
            "make_source": lambda: self.source,
        }
        asked = list(inspect.signature(component).parameters.values())[1:]
        wanted = [one.name for one in asked if one.name in offered or one.default is one.empty]
        for name in wanted:
            if name not in offered:
                raise registry.ComponentError(
                    f"{slot.name}: its constructor asks for {name!r}; a component may ask for "
                    f"{', '.join(offered)}."
                )
        return component(config, **{name: offered[name]() for name in wanted})

    def proposals(self) -> Any:
        """Stage one, or None."""
        return self.component("proposals", self.config.proposals)

    def source(self, name: str, options: Mapping[str, Any]) -> Any:
        """A source of masks for a component that is put together from several (`mixed`)."""
        return self.component("proposals", SlotConfig(name, dict(options)))

    def segmenter(self) -> Segmenter:
        """The whole flow."""
        config = self.config
        return Segmenter(
            ensemble=self.component("ensembles", config.ensemble),
            proposals=self.proposals(),
            classifier=self.component("classifiers", config.classifier),
            dense=self.component("dense", config.dense),
            pixels=self.component("dense", config.pixels),
            size=TestSize(config.input.min_size_test, config.input.max_size_test),
            device=self.device,
            test_time=at_test_time(config),
            skip=Skip(**dataclasses.asdict(config.test.skip)),
        )

    def words(self, vocabulary: Vocabulary) -> Words:
        """A vocabulary with its text features.

        What counts as seen for the ensemble is what MODEL.WEIGHTS was trained on, matched by name and
        synonyms; the vocabulary's own flags with TEST.SEEN dataset, or where the checkpoint does not say.
        """
        vocabulary = self.flagged(vocabulary)
        stage_one = self.stage_one_text(vocabulary) if self.texts.prompts.separate else None
        return Words(vocabulary, self.text(vocabulary), stage_one)

    def flagged(self, vocabulary: Vocabulary) -> Vocabulary:
        """The same classes with the seen flags that `words` speaks of."""
        names = self._learned() if self.config.test.seen == "checkpoint" else ()
        return vocabulary.with_seen(names, same_words.forms) if names else vocabulary

    def _learned(self) -> tuple[str, ...]:
        """The class names that the trained network in use has learned; none where there is none."""
        if "maskformer" in self.config.proposals.names():
            return self.trained.names
        if "per_pixel" in (self.config.pixels.name, self.config.dense.name):
            return self.trained_pixels.names
        if self.config.dense.name == "clsclip" and self.config.dense.options.get("injection") != "pinv":
            return self.trained_clsclip.names
        return ()


def at_test_time(config: Config) -> TestTime:
    """TEST.AUG, TEST.WINDOW and TEST.CRF."""
    aug, window, field = config.test.aug, config.test.window, config.test.crf
    sizes = tuple(TestSize(short, aug.max_size) for short in aug.min_sizes) if aug.enabled else ()
    knobs = {name: value for name, value in dataclasses.asdict(field).items() if name != "enabled"}
    crf = DenseCrf(**knobs) if field.enabled else None
    views = Views(sizes, aug.enabled and aug.flip, tuple(window.size), window.stride)
    return TestTime(views, crf, int(config.test.maps_gib * 2**30))
