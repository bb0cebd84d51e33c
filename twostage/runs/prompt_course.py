"""What the trainings of a prompt share: data, classes, regions, CLIP, and features of regions to judge by."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from twostage import registry
from twostage.builder import Builder
from twostage.classifiers.crops import CropClassifier
from twostage.clip.learned_prompt import LearnedPrompt, learned_text_bank
from twostage.clip.prompt_file import PromptFacts
from twostage.clip.text_bank import LogitScale
from twostage.config import Config
from twostage.data import catalog
from twostage.data.region_crops import Look, RegionCutter, make_cutter
from twostage.data.region_loader import RegionLoader
from twostage.data.regions import Region, RegionBatch, RegionPlan, find_regions, some_of_each
from twostage.engine import distributed
from twostage.engine.trainer import Trainer
from twostage.evaluation.regions import RegionFeatures, encode_regions
from twostage.evaluation.top_k import TopK
from twostage.runs.prompt_report import Score
from twostage.runs.training import Data
from twostage.tasks.prompts import PromptTask, held_out_classes
from twostage.tasks.region_views import FeatureBatch, RegionViews, encode_views
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
KEPT_PHOTOS = 5
"""Every fifth photo is kept from training where seeds are compared on the trained classes."""
JUDGED_REGIONS = 200
"""Most regions of a class that the choice among seeds rests on."""


@dataclass(frozen=True)
class Course:
    """Everything is made when first asked for, and once."""

    config: Config

    @cached_property
    def builder(self) -> Builder:
        """Makes CLIP and the text of CLIP.TEMPLATES."""
        return Builder(self.config)

    @cached_property
    def data(self) -> Data:
        """DATASETS.TRAIN and DATASETS.TEST."""
        return Data.of(self.config)

    @cached_property
    def seen(self) -> list[int]:
        """Seen classes, as positions in the training set's vocabulary."""
        words = self.data.train.vocabulary
        return [k for k in range(len(words)) if words.seen is None or words.seen[k]]

    @cached_property
    def held_out(self) -> list[int]:
        """Seen classes kept from training, as positions in the training set's vocabulary."""
        return [self.seen[k] for k in held_out_classes(self.data.vocabulary, self.config.prompts.held_out)]

    @cached_property
    def trained(self) -> list[int]:
        """The other seen classes."""
        return [k for k in self.seen if k not in self.held_out]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names that compete in training."""
        return self.data.train.vocabulary.subset(self.trained)

    @cached_property
    def cutter(self) -> RegionCutter:
        """How regions become crops: as CLASSIFIER would make them, where that is the one of crops."""
        clip, options, given = self.builder.clip, self.config.prompts, self.config.input
        slot = self.config.classifier
        stage_two = registry.make_config(CropClassifier, slot.options if slot.name == "crops" else {})
        look = Look(
            clip.mean,
            clip.std,
            (stage_two.image_size,) * 2 if stage_two.image_size else clip.image_size,
            given.min_size_test,
            given.max_size_test,
            stage_two.mask_fill,
            stage_two.aspect,
            stage_two.mode == "antialias",
            stage_two.mask_expand_ratio,
        )
        return make_cutter(options.mode, look, options.smallest_crop, given.flip)

    @cached_property
    def photos(self) -> tuple[list[int], list[int]]:
        """Photos to learn from, and those for the choice among seeds: others, unless classes are held out."""
        limit, count = self.config.prompts.photos, len(self.data.train)
        chosen = list(range(count))
        if 0 < limit < count:
            drawn = np.random.default_rng(self.config.seed).choice(count, limit, replace=False)
            chosen = sorted(int(index) for index in drawn)
        if self.held_out or not self._compares_seeds:
            return chosen, chosen
        kept = chosen[KEPT_PHOTOS - 1 :: KEPT_PHOTOS]
        return sorted(set(chosen) - set(kept)), kept

    @property
    def _compares_seeds(self) -> bool:
        return len(set(self.config.prompts.seeds)) > 1

    @cached_property
    def regions(self) -> list[Region]:
        """Every region of the photos; found once, shared among the processes."""
        photos = sorted({*self.photos[0], *self.photos[1]})
        logger.info("Looking for regions in %d photos of %s", len(photos), self.data.train.name)
        mine = find_regions(self.data.train, photos[distributed.rank() :: distributed.world_size()])
        return sorted(region for part in distributed.all_gather_object(mine) for region in part)

    def folder(self, seed: int) -> Path:
        """Where the training of a seed writes."""
        return Path(self.config.output_dir, f"seed_{seed}")

    def facts(self, seed: int, score: Score | None) -> PromptFacts:
        """What the file of a prompt says of its making."""
        clip, names = self.builder.clip, self.vocabulary.every_name
        top1 = None if score is None else score.top1
        return PromptFacts(clip.name, clip.digest, names, self.config.prompts.mode, seed, top1)

    def learn(self, seed: int, resume: bool) -> LearnedPrompt:
        """Train with one seed; a finished training is only read when resuming."""
        clip, options = self.builder.clip, self.config.prompts
        model = dataclasses.replace(self.config.model, weights="")  # they hold CLIP, if anything
        config = dataclasses.replace(self.config, seed=seed, output_dir=str(self.folder(seed)), model=model)
        prompt = LearnedPrompt.random(options.prefix, options.suffix, clip.text_tower.width, seed)
        if options.init:
            prompt.start_with(clip, options.init)
        scale = clip.logit_scale if options.logit_scale is None else options.logit_scale
        task = PromptTask(clip, prompt, self.vocabulary, config.solver, scale)
        logger.info(
            "Seed %d: %d vectors learn from %d classes, %d are held out",
            *(seed, len(prompt.vectors), len(self.trained), len(self.held_out)),
        )
        measure = lambda _: self._scalars(prompt)
        Trainer(task, lambda start: self._batches(config, start), config, measure).run(resume)
        return prompt

    def _batches(self, config: Config, start: int) -> Iterator[RegionBatch | FeatureBatch]:
        """Endless batches from update `start` on, by the seed of `config`; read only when asked for."""
        options, seed = config.prompts, config.seed
        share = config.solver.ims_per_batch // distributed.world_size()
        rows = self._views.rows if options.views else self._to_learn
        plan = RegionPlan(rows, self.trained, options.samples_per_class, seed, options.mode == "fixed")
        if options.views:
            yield from self._views.batches(plan, share, start)
        else:
            yield from RegionLoader(
                *(self.data.train, plan, self.cutter, share, seed, config.dataloader.num_workers, start),
                *(distributed.rank(), distributed.world_size()),
            )

    @cached_property
    def _to_learn(self) -> list[Region]:
        """Regions of the trained classes in the photos to learn from."""
        photos, labels = set(self.photos[0]), set(self.trained)
        found = [region for region in self.regions if region.photo in photos and region.label in labels]
        if lacking := sorted(labels - {region.label for region in found}):
            shown = self.data.train.vocabulary.shown
            names = ", ".join(shown[k] for k in lacking)
            logger.warning("No region of these classes, which compete nevertheless: %s", names)
        return found

    @cached_property
    def _views(self) -> RegionViews:
        """Features of crops of PROMPTS.SAMPLES_PER_CLASS regions of each class."""
        options = self.config.prompts
        chosen = some_of_each(self._to_learn, options.samples_per_class, self.config.seed)
        logger.info("Encoding %d crops of each of %d regions, once for all seeds", options.views, len(chosen))
        return encode_views(
            self.builder.clip, self.data.train, chosen, self.cutter, options.views, self.config.seed
        )

    @cached_property
    def _choice(self) -> RegionFeatures | None:
        """What the seeds are compared by: held-out classes, or trained ones in kept photos."""
        labels = set(self.held_out or (self.trained if self._compares_seeds else []))
        photos = set(self.photos[1])
        found = [region for region in self.regions if region.photo in photos and region.label in labels]
        wanted: dict[int, list[int]] = defaultdict(list)
        for photo, label in some_of_each(found, JUDGED_REGIONS, self.config.seed):
            wanted[photo].append(label)
        if not wanted:
            return None
        chosen = {photo: wanted[photo] for photo in sorted(wanted)}
        features = encode_regions(self.builder.clip, self.data.train, chosen, self.cutter)
        return features.among(self.seen)

    def score(self, prompt: LearnedPrompt) -> Score | None:
        """How well it names what seeds are compared by, all seen classes competing; None without any."""
        if self._choice is None:
            return None
        scale = self.config.prompts.logit_scale
        known: LogitScale = "model" if scale is None else scale
        text = learned_text_bank(self.builder.clip, self._choice.vocabulary, prompt, known)
        top1 = self._choice.judge(text).overall.mean_top1
        assert top1 is not None  # there are regions
        return Score(top1, self._choice.certainty(text))

    @cached_property
    def tests(self) -> Mapping[str, RegionFeatures]:
        """Features of the true regions of each test set."""
        made = {}
        for name in self.config.datasets.test:
            dataset, limit = catalog.get(name, self.config.datasets.root), self.config.test.max_images
            count = min(len(dataset), limit) if limit else len(dataset)
            logger.info("Regions of %d photos of %s, to judge prompts by", count, dataset.name)
            everything = dict.fromkeys(range(count))
            made[dataset.name] = encode_regions(self.builder.clip, dataset, everything, self.cutter)
        return made

    @property
    def words(self) -> dict[str, Vocabulary]:
        """The vocabulary of each test set."""
        return {name: one.vocabulary for name, one in self.tests.items()}

    def judge_plain(self) -> dict[str, TopK]:
        """Top-1 and top-5 of the configuration's own text: templates, or CLIP.PROMPT."""
        return {name: one.judge(self.builder.text(one.vocabulary)) for name, one in self.tests.items()}

    def judge(self, prompt: LearnedPrompt) -> dict[str, TopK]:
        """Top-1 and top-5 on each test set."""
        clip = self.builder.clip
        return {
            name: one.judge(learned_text_bank(clip, one.vocabulary, prompt))
            for name, one in self.tests.items()
        }

    def _scalars(self, prompt: LearnedPrompt) -> dict[str, float]:
        """The headline numbers for the curves."""
        score = self.score(prompt)
        values: dict[str, float | None] = {"choice/top1": None if score is None else score.top1}
        for name, found in self.judge(prompt).items():
            values[f"{name}/top1"] = found.overall.mean_top1
            values[f"{name}/unseen top1"] = None if found.unseen is None else found.unseen.mean_top1
        return {name: value for name, value in values.items() if value is not None}
