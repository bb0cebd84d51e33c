"""From a configuration to objects: the parts of a run, each made at most once and only when asked for."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from twostage import registry
from twostage.checkpoints import Weights, open_weights
from twostage.clip.model import ClipModel
from twostage.clip.precision import preferred_convolutions
from twostage.clsclip.config import ClsClipNetworkConfig
from twostage.clsclip.network import ClsClipNetwork
from twostage.config import Config, ConfigError, SlotConfig
from twostage.data import same_words
from twostage.engine.distributed import pick_device
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.lean import make_lean
from twostage.maskformer.network import MaskFormer
from twostage.networks import Trained, fresh, shipped
from twostage.ops.crf import DenseCrf
from twostage.perpixel.config import PerPixelConfig
from twostage.perpixel.network import PerPixelNetwork
from twostage.protocol import settled
from twostage.readout import vit
from twostage.segmenter import Segmenter, Words
from twostage.skipping import Skip
from twostage.tasks.clsclip import require_same_clip
from twostage.test_time import TestTime
from twostage.types import TextBank
from twostage.views import TestSize, Views
from twostage.vocabulary import Vocabulary
from twostage.wording import Texts

logger = logging.getLogger(__name__)
INSIDE = "checkpoint"
"""CLIP.PRETRAINED's word for the CLIP that lies in MODEL.WEIGHTS."""
DTYPES: dict[str, Any] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "auto": "auto",
}


class Builder:
    """Makes the parts of one run, each at most once and only when asked for."""

    def __init__(self, config: Config, trained: Trained[MaskFormer] | None = None) -> None:
        """trained: stage one's network where it is at hand already, in place of MODEL.WEIGHTS."""
        self.config = config = settled(config)
        self.device = pick_device(config.model.device)
        self.texts = Texts(config.clip, lambda: self.clip, lambda: self.weights, self.device)
        if trained is not None:
            self.trained = trained

    @cached_property
    def clip(self) -> ClipModel:
        """The image-text model of CLIP.*, frozen."""
        options = self.config.clip
        if options.pretrained == INSIDE:
            return self._clip_inside(options.model.replace("/", "-"))
        return ClipModel.load(
            options.model,
            options.pretrained or None,
            device=self.device,
            dtype=DTYPES[options.dtype],
            seed=self.config.seed,
        )

    def _clip_inside(self, name: str) -> ClipModel:
        """The CLIP that lies in a published MODEL.WEIGHTS."""
        inside = None if self.weights is None else self.weights.published
        if inside is None or not inside.clip:
            raise ConfigError(
                f"CLIP.PRETRAINED {INSIDE}: there is no CLIP in MODEL.WEIGHTS {self.config.model.weights!r}; "
                "name a published checkpoint there, or a tag or a file here."
            )
        if inside.clip_name != name:
            raise ConfigError(
                f"CLIP.MODEL is {name}, {inside.report.where} holds {inside.clip_name}: set CLIP.MODEL "
                f"{inside.clip_name}."
            )
        where, kind = inside.report.where, DTYPES[self.config.clip.dtype]
        return ClipModel.from_tensors(name, inside.clip, where, device=self.device, dtype=kind)

    @cached_property
    def weights(self) -> Weights | None:
        """MODEL.WEIGHTS, opened and recognised; None where none are named."""
        path = self.config.model.weights
        return open_weights(shipped(path)) if path else None

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

    @cached_property
    def embedding_dim(self) -> int:
        """Width of the joint space that the embeddings of a trained network have to reach."""
        if self.config.clip.text_features:
            model = self.config.model
            probe = model.mask_former.get("embedding_dim", model.per_pixel.get("embedding_dim"))
            if probe is None:
                raise ConfigError(
                    "CLIP.TEXT_FEATURES is a file, so MODEL.MASK_FORMER.EMBEDDING_DIM has to say how wide "
                    "its rows are (MODEL.PER_PIXEL.EMBEDDING_DIM for a per-pixel network)."
                )
            return int(probe)
        return self.clip.dim

    def network(self) -> MaskFormer:
        """Stage one's network with fresh weights, drawn from SEED."""
        options = {"embedding_dim": self.embedding_dim, **self.config.model.mask_former}
        made = fresh("MASK_FORMER", options, MaskFormer, MaskFormerConfig, self.config.seed)
        return made.to(self.device)

    def pixel_network(self) -> PerPixelNetwork:
        """The per-pixel baseline's network with fresh weights, drawn from SEED."""
        options = {"embedding_dim": self.embedding_dim, **self.config.model.per_pixel}
        made = fresh("PER_PIXEL", options, PerPixelNetwork, PerPixelConfig, self.config.seed)
        return made.to(self.device)

    @cached_property
    def tower_shape(self) -> tuple[int, int]:
        """Width of a token and number of blocks of CLIP's image tower.

        Raises:
            DenseTowerError: it is none whose class token could be replaced.
        """
        vit.require_vit(self.clip.visual)
        visual: Any = self.clip.visual
        return int(visual.class_embedding.shape[0]), len(vit.blocks(visual))

    def clsclip_network(self) -> ClsClipNetwork:
        """ClsCLIP's map and decoder with fresh weights, drawn from SEED."""
        width, depth = self.tower_shape
        given = {"embedding_dim": self.embedding_dim, "width": width, "depth": depth}
        options = {**given, **self.config.model.clsclip}
        made = fresh("CLSCLIP", options, ClsClipNetwork, ClsClipNetworkConfig, self.config.seed)
        return made.to(self.device)

    @cached_property
    def trained(self) -> Trained[MaskFormer]:
        """Stage one's network with the weights of MODEL.WEIGHTS, and what it was trained on."""
        if self.weights is None:
            raise ConfigError(
                "MODEL.WEIGHTS is empty, and untrained proposals mean nothing: name a checkpoint "
                "(OUTPUT_DIR/model_final.pth after training), or another PROPOSALS.NAME."
            )
        network = self.network()
        self.weights.load_into(network)
        return Trained(make_lean(network, self._convolutions()), self.weights.trained_names)

    def _convolutions(self) -> torch.dtype:
        if self.config.model.dtype != "auto":
            found: torch.dtype = DTYPES[self.config.model.dtype]
            return found
        found, reason = preferred_convolutions(self.device)
        logger.info("Stage one: %s", reason)
        return found

    @cached_property
    def trained_pixels(self) -> Trained[PerPixelNetwork]:
        """The per-pixel network with the weights of MODEL.WEIGHTS, and what it was trained on."""
        path = self.config.model.weights
        if not path or "maskformer" in self.config.proposals.names():
            raise ConfigError(
                "A per-pixel network takes its weights from MODEL.WEIGHTS, which "
                + ("are those of PROPOSALS.NAME maskformer here: leave that empty" if path else "is empty")
                + "; name a checkpoint of TASK per_pixel (OUTPUT_DIR/model_final.pth after training)."
            )
        assert self.weights is not None
        network = self.pixel_network()
        self.weights.load_into(network)
        return Trained(network, self.weights.trained_names)

    @cached_property
    def trained_clsclip(self) -> Trained[ClsClipNetwork]:
        """ClsCLIP with its weights, and what it was trained on."""
        model = self.config.model
        path = model.clsclip_weights or model.weights
        others = not model.clsclip_weights and "maskformer" in self.config.proposals.names()
        if not path or others:
            raise ConfigError(
                "ClsCLIP takes its weights from MODEL.CLSCLIP_WEIGHTS, which is empty, or MODEL.WEIGHTS, "
                + ("which are those of PROPOSALS.NAME maskformer here" if path else "which is empty too")
                + "; name a checkpoint of TASK clsclip (OUTPUT_DIR/model_final.pth after training)."
            )
        weights = open_weights(path)
        network = self.clsclip_network()
        weights.load_into(network)
        require_same_clip(weights.content, self.clip, str(path))
        return Trained(network, weights.trained_names)

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
