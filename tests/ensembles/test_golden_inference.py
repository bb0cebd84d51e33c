"""The whole two-stage flow against numbers recorded from the original system, with generated weights."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))

import inputs  # noqa: E402
import names  # noqa: E402
import weights  # noqa: E402

from twostage.classifiers.crops import CropClassifier  # noqa: E402
from twostage.clip.pair import FrozenPair  # noqa: E402
from twostage.clip.text_bank import build_text_bank  # noqa: E402
from twostage.ensembles.geometric import GeometricEnsemble  # noqa: E402
from twostage.maskformer.config import MaskFormerConfig  # noqa: E402
from twostage.maskformer.network import MaskFormer  # noqa: E402
from twostage.ops.masks import mask_areas, mask_boxes  # noqa: E402
from twostage.proposals.maskformer import MaskFormerProposals  # noqa: E402
from twostage.types import Evidence, RegionScores, Segmentation, TextBank  # noqa: E402
from twostage.vocabulary import Vocabulary  # noqa: E402

pytestmark = [pytest.mark.golden, pytest.mark.slow]

TOLERANCE: dict[str, float] = json.loads((GOLDEN / "tolerances.json").read_text())
TEMPLATES: dict[str, Any] = {"single": ("a sculpture of a {}.",), "vild": "vild"}
LABEL_GAP = 3e-3
"""A label may differ only where the two best classes of the map are this close."""
R50 = ["w08", "clip_only", "stage_one_only", "all_empty_w08", "all_empty_clip_only", "matting"]
R101C = ["w07_thr03", "w0"]


def generated(depth: str, wanted: Iterable[str]) -> dict[str, Tensor]:
    """These tensors of the generated checkpoint."""
    plan = weights.plan(depth)
    return {name: torch.from_numpy(weights.tensor(name, *plan[name])) for name in wanted}


class Watched:
    """A CLIP that keeps the last crops it saw and the features it gave, over all chunks of one call."""

    def __init__(self, clip: FrozenPair) -> None:
        self.crops: list[Tensor] = []
        self.features: list[Tensor] = []
        self.image_size, self.mean, self.std, self.dim = clip.image_size, clip.mean, clip.std, 512
        self._clip = clip

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.crops.append(pixels.clone())
        self.features.append(self._clip.encode_images(pixels))
        return self.features[-1]


@pytest.fixture(scope="module")
def clip() -> FrozenPair:
    """CLIP ViT-B/16; its generated weights do not depend on the case."""
    model = open_clip.create_model("ViT-B-16-quickgelu")
    prefix = "clip_adapter.clip_model."
    made = generated("r50", [name for name in weights.plan("r50") if name.startswith(prefix)])
    model.load_state_dict({name.removeprefix(prefix): value for name, value in made.items()}, strict=True)
    return FrozenPair(model, open_clip.get_tokenizer("ViT-B-16"), "generated")


class Case:
    """One recorded case: both stages run once for each kind of crop, all variants share them."""

    def __init__(self, name: str, clip: FrozenPair) -> None:
        self.name = name
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.values: Mapping[str, Any] = np.load(GOLDEN / f"{name}.npz")
        self.variants = {v["name"]: v for v in self.facts["variants"]}
        seen = None if self.facts["seen"] is None else tuple(bool(flag) for flag in self.facts["seen"])
        self.words = Vocabulary(tuple((word,) for word in self.facts["classes"]), seen)
        self.clip = clip
        self.text: TextBank = build_text_bank(clip, self.words, TEMPLATES[self.facts["prompt"]])
        picture = inputs.image(**{"name" if k == "formula" else k: v for k, v in self.facts["image"].items()})
        assert hashlib.sha256(picture.tobytes()).hexdigest() == self.facts["input_sha256"]
        self.image = torch.from_numpy(picture).permute(2, 0, 1)
        network = MaskFormer(MaskFormerConfig(backbone=self.facts["backbone"]))
        table = names.name_table(network.state_dict(), weights.plan(self.facts["backbone"]))
        made = generated(self.facts["backbone"], table.values())
        network.load_state_dict({ours: made[source] for ours, source in table.items()}, strict=True)
        stage_one = MaskFormerProposals(MaskFormerProposals.Config(), network)
        (self.proposals,) = stage_one.propose([self.image], self.text)
        self._named: dict[tuple[float, bool], tuple[RegionScores, Watched]] = {}

    def regions(self, variant: dict[str, Any]) -> tuple[RegionScores, Watched]:
        """Stage two with this variant's threshold and matting, and what passed through CLIP."""
        key = (variant["thr"], variant["matting"])
        if key not in self._named:
            watched = Watched(self.clip)
            config = CropClassifier.Config(mask_threshold=key[0], matting=key[1], mask_fill=variant["fill"])
            classifier = CropClassifier(config, watched)
            (scores,) = classifier.classify([self.image], [self.proposals], self.text)
            self._named[key] = scores, watched
        return self._named[key]

    def evidence(self, variant: dict[str, Any]) -> Evidence:
        regions = self.regions(variant)[0] if variant["ensemble"] else None
        height, width = self.facts["output_hw"]
        return Evidence((height, width), self.proposals, self.proposals.logits, regions)

    def close(self, got: Tensor, key: str, tolerance: float, share: float = 1.0) -> None:
        """The recorded samples of a tensor; at least this share of them within the tolerance."""
        index = torch.from_numpy(self.values[f"{key}.index"]).long()
        if len(index) == 0:
            assert got.numel() == 0
            return
        assert list(got.shape) == self.facts["quantities"][key]["shape"]
        difference = (got.flatten()[index] - torch.from_numpy(self.values[f"{key}.value"])).abs()
        print(f"{self.name} {key}: largest {difference.max():.1e}, median {difference.median():.1e}")
        assert (difference <= tolerance).float().mean() >= share, f"{key}: {difference.max()}"


@pytest.fixture(scope="module")
def r50(clip: FrozenPair) -> Case:
    return Case("r50_single_coco171", clip)


@pytest.fixture(scope="module")
def r101c(clip: FrozenPair) -> Case:
    return Case("r101c_vild_context59", clip)


def tolerance(case: Case, variant: str, quantity: str) -> float:
    strict = variant == "matting" and case.name.startswith("r50")
    return TOLERANCE[f"{quantity}_matting_r50" if strict else quantity]


def check_masks(case: Case, name: str) -> None:
    binary = case.proposals.masks > case.variants[name]["thr"]
    recorded = torch.from_numpy(case.values[f"{name}/boxes"]).long()
    stable = torch.from_numpy(case.values[f"{name}/box_stable"])
    assert torch.equal(mask_boxes(binary)[stable], recorded[stable])
    area = torch.from_numpy(case.values[f"{name}/mask_area"]).long()
    slack = (area * TOLERANCE["mask_area_relative"]).clamp(min=TOLERANCE["mask_area_pixels"])
    assert ((mask_areas(binary) - area).abs() <= slack).all()


def check_regions(case: Case, name: str) -> None:
    scores, watched = case.regions(case.variants[name])
    assert int(scores.valid.sum()) == case.variants[name]["nonempty"]
    if not scores.valid.any():
        assert not watched.crops
        return
    case.close(torch.cat(watched.crops), f"{name}/crops", TOLERANCE["crops"], TOLERANCE["crops_share_within"])
    features, probs = torch.cat(watched.features), scores.probs()[scores.valid]
    case.close(features, f"{name}/image_features", tolerance(case, name, "image_features"))
    case.close(probs, f"{name}/clip_probs", tolerance(case, name, "clip_probs"))
    rows = torch.from_numpy(case.values[f"{name}/clip_logits.first_rows"])[:, :-1]
    torch.testing.assert_close(scores.logits[scores.valid][: len(rows)], rows, rtol=0, atol=0.6)
    best = torch.from_numpy(case.values[f"{name}/clip_probs.argmax"]).long()
    top = probs.topk(2, dim=1).values
    decided = top[:, 0] - top[:, 1] > tolerance(case, name, "clip_probs")
    assert torch.equal(probs.argmax(dim=1)[decided], best[decided])


def check_map(case: Case, name: str, made: Segmentation) -> None:
    absmax = case.facts["quantities"][f"{name}/sem_seg"]["absmax"]
    assert made.scores is not None
    classes, rows, columns = (
        torch.from_numpy(case.values[f"{name}/sem_seg.{axis}"]).long()
        for axis in ("classes", "rows", "columns")
    )
    got = made.scores[classes[None], rows[:, None], columns[:, None]]
    difference = (got - torch.from_numpy(case.values[f"{name}/sem_seg.values"])).abs().max().item()
    assert difference <= TOLERANCE["sem_seg_values_times_absmax"] * absmax
    sums = torch.from_numpy(case.values[f"{name}/sem_seg.class_sum"])
    torch.testing.assert_close(
        made.scores.double().sum(dim=(1, 2)).float(), sums, rtol=TOLERANCE["class_sum_relative"], atol=1e-6
    )
    labels = torch.from_numpy(np.array(Image.open(GOLDEN / f"{case.name}.{name}.png"))).long()
    same = made.labels == labels
    top = made.scores.topk(2, dim=0).values
    gap = torch.where(same, 0.0, top[0] - top[1]).max().item()
    print(
        f"{case.name} {name}: map {difference:.1e} of {absmax:.2g}, "
        f"{int((~same).sum())} pixels differ, two best there within {gap:.1e}"
    )
    assert same.float().mean() >= TOLERANCE["label_equal_share"]
    assert gap <= LABEL_GAP


def check_variant(case: Case, name: str) -> None:
    variant = case.variants[name]
    if variant["ensemble"]:
        case.close(case.proposals.masks, f"{name}/mask_probs", TOLERANCE["mask_probs"])
        check_masks(case, name)
        check_regions(case, name)
    evidence = case.evidence(variant)
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(weight=variant["w"], scores=True))
    mixed = ensemble.region_scores(evidence, ensemble.parts(evidence), case.words)
    assert mixed is not None
    kept = mixed[0] if variant["w"] > 0 else mixed[0][mixed[1]]
    case.close(kept, f"{name}/scores", TOLERANCE["scores"])
    check_map(case, name, ensemble.merge(evidence, case.words))


@pytest.mark.parametrize("variant", R50)
def test_r50_single_coco171(r50: Case, variant: str) -> None:
    check_variant(r50, variant)


@pytest.mark.parametrize("variant", R101C)
def test_r101c_vild_context59(r101c: Case, variant: str) -> None:
    check_variant(r101c, variant)
