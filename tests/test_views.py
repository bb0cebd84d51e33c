"""Many views of one photo: which ones there are, where their maps go, and what all of them come to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import Colours, Strips, bank, write_system
from torch import Tensor

import twostage
from twostage.builder import at_test_time
from twostage.config import load_config
from twostage.data.shapes.dataset import ShapesDataset
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.errors import TwostageError
from twostage.evaluation.runner import ORACLE_CLASSES, ORACLE_MASKS, evaluate
from twostage.ops.canvas import Canvas, grid_within
from twostage.ops.crf import DenseCrf
from twostage.ops.windows import window_boxes
from twostage.proposals.oracle import OracleProposals
from twostage.runs.dry_run import dry_run
from twostage.segmenter import Segmenter, Words
from twostage.test_time import TestTime, leading_classes
from twostage.types import VOID, DenseScores, Segmentation, TextBank
from twostage.views import TestSize, View, Views
from twostage.vocabulary import Vocabulary

WORDS = Words(Vocabulary.from_words("a, b, c, d"), bank(4))
PLAIN = GeometricEnsemble(GeometricEnsemble.Config())


class Palette:
    """Dense head: how near each pixel's colour is to red, green, blue and grey, at the size of the photo."""

    def __init__(self, sharpness: float = 8.0) -> None:
        self.sharpness, self.seen = sharpness, list[tuple[int, int]]()

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        self.seen += [(image.shape[1], image.shape[2]) for image in images]
        colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
        return [
            DenseScores(
                -self.sharpness * torch.cdist(colours, image.flatten(1).T / 255).view(4, *image.shape[1:])
            )
            for image in images
        ]


class Mood(Palette):
    """Names the whole of what it sees by its mean colour, so that windows differ."""

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        means = [image.float().mean((1, 2), keepdim=True) for image in images]
        return [
            DenseScores(found.logits.expand(4, *image.shape[1:]))
            for found, image in zip(super().predict(means, text), images, strict=True)
        ]


class Grainy(Palette):
    """The palette with noise in its logits."""

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        chance = torch.Generator().manual_seed(0)
        found = [one.logits for one in super().predict(images, text)]
        return [DenseScores(one + 3.5 * torch.randn(one.shape, generator=chance)) for one in found]


def blocks(height: int = 24, width: int = 36) -> Tensor:
    """RGB uint8: blocks of 12 pixels in four colours."""
    kinds = torch.tensor([[0, 1, 2], [3, 0, 1], [2, 1, 3]])
    colours = torch.tensor([[230, 20, 10], [10, 220, 30], [20, 20, 240], [120, 130, 125]], dtype=torch.uint8)
    rows, columns = torch.arange(height) // 12 % 3, torch.arange(width) // 12 % 3
    return colours[kinds[rows][:, columns]].permute(2, 0, 1).contiguous()


def noise(height: int = 40, width: int = 31, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def system(test_time: TestTime, head: Any = None, ensemble: Any = PLAIN) -> Segmenter:
    head = Palette() if head is None else head
    return Segmenter(ensemble, dense=head, size=TestSize(0), test_time=test_time)


def labels(test_time: TestTime, photo: Tensor, head: Any = None, ensemble: Any = PLAIN) -> Tensor:
    [result] = system(test_time, head, ensemble).segment([photo], WORDS)
    return result.labels


def test_the_list_of_views() -> None:
    assert Views().plain
    assert Views(windows=(0,)).plain
    assert Views().of(0, (20, 30)) == [View((20, 30), (0, 0, 20, 30))]
    many = Views((TestSize(10), TestSize(20)), flip=True, windows=(0, 9), stride=8)
    assert not many.plain
    assert many.of(0, (10, 15)) == [View((10, 15), (0, 0, 10, 15), flip) for flip in (False, True)]
    boxes = [(0, 0, 9, 9), (0, 8, 9, 17), (0, 9, 9, 18), (2, 0, 11, 9), (2, 8, 11, 17), (2, 9, 11, 18)]
    assert [view.box for view in many.of(1, (11, 18)) if not view.mirrored] == boxes, (
        "the last are moved back"
    )
    assert [view.mirrored for view in many.of(1, (11, 18))] == [False, True] * 6


def test_windows_of_the_paper_step_by_a_third() -> None:
    """224 pixels overlap by two thirds, a step of 75."""
    found = [view.box for view in Views(windows=(224,)).of(0, (256, 341))]
    assert found == window_boxes((256, 341), (224, 224), (75, 75))
    assert [box[1] for box in found] == [0, 75, 117] * 2
    assert Views(windows=(224,)).of(0, (100, 150)) == [View((100, 150), (0, 0, 100, 150))], (
        "smaller: seen whole"
    )
    assert Views(windows=(224,)).of(0, (100, 250))[-1].box == (0, 26, 100, 250)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"windows": (8,), "stride": 9},
            r"STRIDE: a step of 9 pixels leaves gaps between windows of 8; use 8",
        ),
        ({"windows": (8, 8)}, r"WINDOW\.SIZE: 2 windows for 1 sizes"),
        ({"windows": (8, 8), "sizes": (TestSize(1),) * 3}, r"one for each of TEST\.AUG\.MIN_SIZES"),
        ({"windows": (-1,)}, "0 or more pixels"),
        ({"stride": -2}, "0 or more pixels"),
    ],
)
def test_views_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        Views(**options)


def test_looking_and_placing() -> None:
    photo = noise(10, 12)
    view = View((10, 12), (2, 3, 7, 11), mirrored=True)
    assert torch.equal(view.look(photo), photo[:, 2:7, 3:11].flip(2))
    assert torch.equal(view.look(photo[0]), photo[0, 2:7, 3:11].flip(1))
    assert view.seen_hw == (5, 8)
    assert view.place((10, 12)) == view.box
    assert view.place((20, 36)) == (4, 9, 14, 33)
    assert View((10, 12), (9, 11, 10, 12)).place((2, 2)) == (1, 1, 2, 2), "at least one cell, inside the grid"
    whole = View((10, 12), (0, 0, 10, 12))
    assert whole.look(photo) is photo, "the ordinary view copies nothing"


@pytest.mark.parametrize("grid_hw", [(7, 5), (40, 31), (83, 97)])
def test_windows_cover_any_grid(grid_hw: tuple[int, int]) -> None:
    covered = torch.zeros(grid_hw)
    for view in Views(windows=(9,), stride=9).of(0, (40, 31)):
        top, left, bottom, right = view.place(grid_hw)
        covered[top:bottom, left:right] += 1
    assert bool((covered > 0).all())


def test_the_canvas_is_a_mean() -> None:
    """Against a loop over pixels, with mirrored views and views that are silent in places."""
    chance = torch.Generator().manual_seed(0)
    canvas = Canvas(70, (9, 8), 10**9)
    told: dict[tuple[int, int], list[Tensor]] = {(y, x): [] for y in range(9) for x in range(8)}
    for top, left, bottom, right in window_boxes((9, 8), (5, 4), (3, 2)):
        for mirrored in (False, True):
            values = torch.rand(70, bottom - top, right - left, generator=chance)
            speaks = torch.rand(bottom - top, right - left, generator=chance) > 0.4
            canvas.add((top, left, bottom, right), values, speaks, mirrored)
            for y in range(top, bottom):
                for x in range(left, right):
                    column = right - 1 - x if mirrored else x - left
                    if speaks[y - top, column]:
                        told[y, x].append(values[:, y - top, column])
    quiet = 0
    for rows, mean, void in canvas.strips():
        for y in range(rows.start, rows.stop):
            for x in range(8):
                silent = not told[y, x]
                quiet += silent
                assert silent == (void is not None and bool(void[y - rows.start, x]))
                if not silent:
                    expected = torch.stack(told[y, x]).mean(0)
                    torch.testing.assert_close(mean[:, y - rows.start, x], expected)
    assert quiet > 0


def test_the_grid_keeps_to_its_budget() -> None:
    assert grid_within(10, (30, 40), 10 * 30 * 40 * 4) == (30, 40)
    height, width = grid_within(847, (1300, 2000), 2**30)
    assert 847 * height * width * 4 <= 2**30 < 847 * (height + 2) * (width + 2) * 4
    assert height / width == pytest.approx(1300 / 2000, rel=0.01)
    assert grid_within(10**6, (3, 4), 1) == (1, 1)


@pytest.mark.parametrize(
    "views",
    [
        Views(flip=True),
        Views((TestSize(24), TestSize(48, 4000), TestSize(72, 4000)), flip=True),
        Views((TestSize(36),), windows=(16,)),
        Views((TestSize(24), TestSize(48)), True, (0, 20), 12),
    ],
)
def test_a_head_that_follows_the_photo_says_the_same_in_every_view(views: Views) -> None:
    photo, head = blocks(), Palette()
    found = labels(TestTime(views), photo, head)
    assert torch.equal(found, labels(TestTime(), photo))
    assert len(head.seen) > 1


def test_mirrored_photos_give_mirrored_labels() -> None:
    views = TestTime(Views((TestSize(30), TestSize(47)), flip=True))
    assert torch.equal(labels(views, noise().flip(2)).flip(1), labels(views, noise()))


def test_windows_against_a_loop() -> None:
    """Every window named alone; a pixel takes the class with the largest mean over its windows."""
    photo, text = blocks(40, 31), WORDS.text
    total = torch.zeros(4, 40, 31)
    for top, left, bottom, right in window_boxes((40, 31), (14, 14), (5, 5)):
        seen = photo[:, top:bottom, left:right]
        total[:, top:bottom, left:right] += Mood().predict([seen], text)[0].logits.softmax(0)
    result = labels(TestTime(Views(windows=(14,))), photo, Mood())
    assert torch.equal(result, total.argmax(0).int())
    assert len(result.unique()) > 1


def test_one_plain_look_is_the_path_without_extras() -> None:
    """Nothing is asked for that one plain look does not need; the long way round gives the same bits."""
    asked: list[bool] = []

    class Spy(GeometricEnsemble):
        def merge(self, evidence: Any, vocabulary: Any) -> Segmentation:
            asked.append(self.config.scores)
            return super().merge(evidence, vocabulary)

    ensemble = Spy(GeometricEnsemble.Config(confidence=True))
    photo = noise()
    [short] = system(TestTime(), ensemble=ensemble).segment([photo], WORDS)
    assert asked == [False]
    [long] = system(TestTime(Views((TestSize(0),))), ensemble=ensemble).segment([photo], WORDS)
    assert asked == [False, True]
    assert torch.equal(short.labels, long.labels)
    assert short.confidence is not None
    assert long.confidence is not None
    assert torch.equal(short.confidence, long.confidence)
    assert long.scores is None


def test_scores_are_kept_for_those_who_ask() -> None:
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(scores=True))
    for extra, views in ((TestTime(Views(flip=True)), 2), (TestTime(crf=DenseCrf(max_classes=2)), 1)):
        [result] = system(extra, ensemble=ensemble).segment([blocks()], WORDS)
        assert result.scores is not None
        assert torch.equal(result.scores.argmax(0).int(), result.labels)
        assert result.info == {"views": views, "random_field": views == 1}
        torch.testing.assert_close(result.scores.sum(0), torch.ones(24, 36))


def test_a_view_has_no_say_where_it_is_void() -> None:
    """Strips that see nothing left of the middle of a window leave their part to the other windows."""

    class LeftHalf(Strips):
        def _one(self, image: Tensor) -> Any:
            found = super()._one(image)
            found.masks[:, :, image.shape[2] // 2 :] = False
            return found

    ensemble = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",), uncovered="void"))
    parts = (ensemble, LeftHalf(Strips.Config(1)), Colours(Colours.Config()))
    for crf in (None, DenseCrf()):
        made = Segmenter(*parts, size=TestSize(0), test_time=TestTime(Views(windows=(12,), stride=6), crf))
        [found] = made.segment([blocks(12, 36)], WORDS)
        assert not bool((found.labels[:, :30] == VOID).any())
        assert bool((found.labels[:, 30:] == VOID).all()), "no window sees these in its left half"


def test_a_coarse_grid_still_gives_labels_of_the_photo(caplog: pytest.LogCaptureFixture) -> None:
    photo = blocks(36, 36)
    fine = labels(TestTime(Views(flip=True)), photo)
    rough = labels(TestTime(Views(flip=True), maps_bytes=2 * 4 * 4 * 18 * 18), photo)
    assert rough.shape == fine.shape
    assert float((rough == fine).float().mean()) > 0.85
    assert torch.equal(rough[5::12, 5::12], fine[5::12, 5::12])
    labels(TestTime(Views(flip=True), maps_bytes=2 * 4 * 4 * 18 * 18), photo)
    assert caplog.text.count("coarser grid; raise it") == 1, "said once"


def test_the_field_cleans_up_and_keeps_leading_classes() -> None:
    photo = blocks(36, 48)
    truth, before = labels(TestTime(), photo), labels(TestTime(), photo, Grainy())
    assert float((before == truth).float().mean()) < 0.93
    for unary in ("softmax", "shares"):
        after = labels(TestTime(crf=DenseCrf(unary=unary)), photo, Grainy())  # type: ignore[arg-type]
        assert float((after == truth).float().mean()) > 0.99
    few = labels(TestTime(crf=DenseCrf(max_classes=2)), photo, Grainy())
    assert set(few.unique().tolist()) == set(before.flatten().bincount().topk(2).indices.tolist())


def test_leading_classes() -> None:
    canvas = Canvas(4, (1, 4), 10**6)
    maps = torch.tensor([[5.0, 0, 0, 0], [4, 4, 4, 4], [4, 0, 4, 5], [4.5, 3, 3, 3]]).view(4, 1, 4)
    canvas.add((0, 0, 1, 4), maps)
    assert leading_classes(canvas, 1).tolist() == [1]
    assert leading_classes(canvas, 2).tolist() == [1, 2], "one pixel each: the larger share goes first"
    assert leading_classes(canvas, 4).tolist() == [0, 1, 2, 3]


def test_an_ensemble_without_class_maps_is_refused_at_once() -> None:
    class Plain:
        def merge(self, evidence: Any, vocabulary: Any) -> Segmentation:
            return Segmentation(torch.zeros(evidence.size_hw, dtype=torch.int32))

    system(TestTime(), ensemble=Plain())
    with pytest.raises(TwostageError, match=r"Plain has no option `scores`.*ENSEMBLE\.NAME geometric"):
        system(TestTime(Views(flip=True)), ensemble=Plain())


DATA = ShapesDataset("val", length=2)
TWENTY = Words(DATA.vocabulary, bank(20))
REGIONS = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",)))


def test_evaluation_uses_all_views_for_systems_and_one_for_the_oracles() -> None:
    systems = {"mine": REGIONS, ORACLE_CLASSES: REGIONS, ORACLE_MASKS: REGIONS}
    extra = TestTime(Views((TestSize(0), TestSize(64)), True, (0, 40)))

    def made(test_time: TestTime) -> Segmenter:
        parts = (REGIONS, Strips(Strips.Config(5)), Colours(Colours.Config()))
        return Segmenter(*parts, size=TestSize(0), test_time=test_time)

    shown: dict[str, dict[str, Segmentation]] = {}
    plain = evaluate(made(TestTime()), DATA, TWENTY, systems)
    many = evaluate(
        made(extra), DATA, TWENTY, systems, on_image=lambda s, maps: shown.update({s.image_id: maps})
    )
    for oracle in (ORACLE_CLASSES, ORACLE_MASKS):
        assert plain.metrics[oracle].as_dict() == many.metrics[oracle].as_dict()
    assert plain.recall == many.recall
    assert plain.metrics["mine"].as_dict() != many.metrics["mine"].as_dict()
    for index in range(2):
        [alone] = made(extra).segment([DATA[index].image], TWENTY)
        assert torch.equal(alone.labels, shown[DATA[index].image_id]["mine"].labels)


def test_the_ordinary_look_is_not_taken_twice() -> None:
    head = Palette()
    segmenter = system(TestTime(Views((TestSize(0), TestSize(20)), flip=True)), head)
    photo = noise()
    [known] = segmenter.gather([photo], WORDS)
    result = segmenter.label(photo, WORDS, {"x": PLAIN}, known)["x"]
    assert sorted(head.seen) == [(26, 20)] * 2 + [(40, 31)] * 2
    assert torch.equal(result.labels, segmenter.segment([photo], WORDS)[0].labels)


def test_true_masks_as_stage_one_are_cut_to_each_view() -> None:
    extra = TestTime(Views((TestSize(0),), True, (50,)))
    parts = (REGIONS, OracleProposals.tiny(), Colours(Colours.Config()))
    found = evaluate(Segmenter(*parts, size=TestSize(0), test_time=extra), DATA, TWENTY, {"mine": REGIONS})
    assert found.metrics["mine"].void_share == 0
    assert found.images == 2


def test_options_become_views(tmp_path: Path) -> None:
    assert at_test_time(load_config()).plain
    words = (
        "TEST.AUG.ENABLED=true TEST.AUG.MIN_SIZES=[32,48] TEST.AUG.MAX_SIZE=99 TEST.WINDOW.SIZE=[0,24] "
        "TEST.CRF.ENABLED=true TEST.CRF.COMPAT=1 TEST.MAPS_GIB=0.5"
    )
    made = at_test_time(load_config(None, words.split()))
    assert made == TestTime(
        Views((TestSize(32, 99), TestSize(48, 99)), True, (0, 24)), DenseCrf(compat=1.0), 2**29
    )
    with pytest.raises(TwostageError, match=r"TEST\.WINDOW\.STRIDE"):
        at_test_time(load_config(None, ["TEST.WINDOW.SIZE", "24", "TEST.WINDOW.STRIDE", "25"]))


def test_a_dry_run_tells_of_them_and_of_what_cannot_be() -> None:
    words = "TEST.AUG.ENABLED=true TEST.AUG.MIN_SIZES=[32,48] TEST.WINDOW.SIZE=24 TEST.CRF.ENABLED=true"
    path = Path(__file__).parents[1] / "configs" / "shapes" / "zero_shot.yaml"
    told = dry_run(load_config(path, words.split())).parts
    assert "views: 32, 48, windows of 24, each mirrored too" in told
    assert "random field: 5 steps, unary softmax" in told
    wrong = dry_run(load_config(path, [*words.split(), "TEST.WINDOW.STRIDE=25"])).wrong
    assert any("leaves gaps" in line for line in wrong)


def test_a_loaded_system_uses_them(tmp_path: Path) -> None:
    """From the file of options to `System.segment`, with and without."""
    path, photo = write_system(tmp_path), blocks(40, 50)
    extras = ["TEST.AUG.ENABLED=true", "TEST.WINDOW.SIZE=30", "TEST.CRF.ENABLED=true"]
    plain = twostage.load(str(path)).segment(photo, "a, b, c")
    result = twostage.load(str(path), extras).segment(photo, "a, b, c")
    assert "views" not in plain.info
    assert result.info == {"views": 2 * 2 * 3, "random_field": True}
    assert result.labels.shape == (40, 50)
    assert result.confidence is not None
    assert 1 / 3 <= float(result.confidence.min()) <= float(result.confidence.max()) <= 1 + 1e-6


MEMORY = """
import resource, torch
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.ops.crf import DenseCrf
from twostage.segmenter import Segmenter, Words
from twostage.test_time import TestTime
from twostage.types import DenseScores, TextBank
from twostage.views import TestSize, Views
from twostage.vocabulary import Vocabulary
torch.set_num_threads(1)
class Head:
    def predict(self, images, text):
        return [DenseScores(torch.randn(847, 9, 12)) for _ in images]
names = Vocabulary.from_words([f"w{k}" for k in range(847)])
words = Words(names, TextBank(torch.eye(847), torch.arange(847), 847))
extra = TestTime(Views(flip=True), DenseCrf(iterations=1), 48 * 2**20)
ensemble = GeometricEnsemble(GeometricEnsemble.Config())
system = Segmenter(ensemble, dense=Head(), size=TestSize(0), test_time=extra)
def run(height, width):
    photo = torch.arange(3 * height * width).remainder(251).to(torch.uint8).view(3, height, width)
    assert system.segment([photo], words)[0].labels.shape == (height, width)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = run(30, 40)
print(run(300, 400) - before)
"""


def test_memory_is_bounded_for_large_vocabularies() -> None:
    """847 maps of 300 x 400 pixels are 388 MiB; twice 48 MiB and the field's 250 bytes a pixel have to do."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    grown = int(ran.stdout) / 1024
    assert grown < 2 * 48 + 250 * 300 * 400 / 2**20 + 60
