"""The benchmark data sets as a table: names, class lists, folders below the root of all data sets, counts.

Readers, preparation scripts and tests go by this table. A data set is photos as they were published and label
maps as `datasets/prepare_*.py` makes them: PNG files of contiguous ids, flat in one folder a split; the files
there are the split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from twostage.data import vocabularies
from twostage.data.class_list import ClassList


@dataclass(frozen=True)
class Source:
    """Where a data set comes from. url: page or archive of the photos and annotations; program: what prepares
    it, below `datasets/`, with the options that choose its classes.
    """

    url: str
    program: str


@dataclass(frozen=True)
class Benchmark:
    """One split of a data set.

    class_list: a name in twostage.data.vocabularies; images, labels: folders below the root; photos: label
    maps in the complete split; image_suffix: photo "a" + image_suffix, in any sub-folder of `images`, has the
    label map "a.png"; test_short, test_long: shorter and longest longer edge in the paper's evaluation,
    pixels; rest: whether pixels of no class of the list, void ones too, are its background; subsets: named
    groups of classes that reports show beside seen and unseen.
    """

    name: str
    class_list: str
    images: str
    labels: str
    photos: int
    source: Source
    image_suffix: str = ".jpg"
    test_short: int = 512
    test_long: int = 2048
    rest: bool = False
    subsets: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def classes(self) -> ClassList:
        """The class list, whose ids stand in the label maps."""
        return vocabularies.load(self.class_list)

    @property
    def void(self) -> int:
        """The value of pixels without a class in the label maps; above 255 they have 16 bits."""
        return (*self.classes.ignore, 255)[0]

    def image_folder(self, root: str | Path) -> Path:
        """Where the photos lie."""
        return Path(root) / self.images

    def label_folder(self, root: str | Path) -> Path:
        """Where the prepared label maps lie."""
        return Path(root) / self.labels

    def label_stem(self, image_name: str) -> str | None:
        """The stem of the label map for a photo's file name, None where the file is no photo of this set."""
        if not image_name.endswith(self.image_suffix) or image_name.startswith("."):
            return None
        return image_name.removesuffix(self.image_suffix)


_COCO = Source("https://github.com/nightrome/cocostuff#downloads", "prepare_coco_stuff.py")
_VOC = Source(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and, for SegmentationClassAug, "
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    "prepare_voc.py",
)
_CONTEXT = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and, for the annotations,"
_CONTEXT_ANNOTATIONS = {
    59: "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
    459: "https://www.cs.stanford.edu/~roozbeh/pascal-context/",
}
_ADE = Source("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip", "prepare_ade20k.py")
_ADE_FULL = Source("https://groups.csail.mit.edu/vision/datasets/ADE20K/", "prepare_ade20k.py --classes 847")
_CITYSCAPES = Source("https://www.cityscapes-dataset.com/", "prepare_cityscapes.py")

# The unseen classes of COCO-Stuff, things and stuff apart (Xian et al., "Semantic Projection Network for
# Zero- and Few-Label Semantic Segmentation", CVPR 2019).
_COCO_SUBSETS = (
    ("novel_thing", (19, 23, 28, 29, 36, 51, 76)),
    ("novel_stuff", (88, 94, 112, 133, 136, 137, 157, 160)),
)


def _coco(name: str, split: str, photos: int) -> Benchmark:
    return Benchmark(
        name=name,
        class_list="coco_stuff",
        images=f"coco/{split}",
        labels=f"coco/labels_171/{split}",
        photos=photos,
        source=_COCO,
        test_short=640,
        test_long=2560,
        subsets=_COCO_SUBSETS,
    )


def _context(classes: int, split: str, photos: int) -> Benchmark:
    return Benchmark(
        name=f"pascal_context_{classes}_{split}",
        class_list=f"pascal_context_{classes}",
        images="VOC2010/JPEGImages",
        labels=f"VOC2010/labels_{classes}/{split}",
        photos=photos,
        source=Source(
            f"{_CONTEXT} {_CONTEXT_ANNOTATIONS[classes]}", f"prepare_pascal_context.py --classes {classes}"
        ),
    )


def _ade(name: str, split: str, photos: int) -> Benchmark:
    folder = "ADEChallengeData2016"
    return Benchmark(
        name, "ade20k_150", f"{folder}/images/{split}", f"{folder}/labels_150/{split}", photos, _ADE
    )


def _ade_full(name: str, split: str, photos: int) -> Benchmark:
    folder = "ADE20K_2021_17_01"
    return Benchmark(
        name, "ade20k_847", f"{folder}/images_847/{split}", f"{folder}/labels_847/{split}", photos, _ADE_FULL
    )


def _cityscapes(split: str, photos: int) -> Benchmark:
    return Benchmark(
        name=f"cityscapes_{split}",
        class_list="cityscapes",
        images=f"cityscapes/leftImg8bit/{split}",
        labels=f"cityscapes/labels_19/{split}",
        photos=photos,
        source=_CITYSCAPES,
        image_suffix="_leftImg8bit.png",
        test_short=1024,
        test_long=2048,
    )


def _voc(name: str, split: str, photos: int) -> Benchmark:
    return Benchmark(name, "voc", "VOC2012/JPEGImages", f"VOC2012/labels_20/{split}", photos, _VOC)


_VOC_21 = Benchmark(
    "voc21_val", "voc21", "VOC2012/JPEGImages", "VOC2012/labels_21/val", 1_449,
    Source("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "prepare_voc.py --classes 21"),
)  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {
    row.name: row
    for row in (
        _coco("coco_stuff_train", "train2017", 118_287),
        _coco("coco_stuff_val", "val2017", 5_000),
        _voc("voc_train", "train_aug", 10_582),
        _voc("voc_val", "val", 1_449),
        _VOC_21,
        _context(59, "train", 4_998),
        _context(59, "val", 5_105),
        _context(459, "train", 4_998),
        _context(459, "val", 5_105),
        _ade("ade20k_150_train", "training", 20_210),
        _ade("ade20k_150_val", "validation", 2_000),
        _ade_full("ade20k_847_train", "training", 25_574),
        _ade_full("ade20k_847_val", "validation", 2_000),
        _cityscapes("train", 2_975),
        _cityscapes("val", 500),
    )
}
"""Every benchmark split that is prepared, by its catalog name."""


def _derived(name: str, class_list: str, source: str, rest: bool = False) -> Benchmark:
    return replace(BENCHMARKS[source], name=name, class_list=class_list, rest=rest, subsets=())


DERIVED: dict[str, Benchmark] = {
    row.name: row
    for row in (
        _derived("voc21_plain_val", "voc21_plain", "voc21_val"),
        _derived("voc20_val", "voc20", "voc_val"),
        _derived("voc20_plain_val", "voc20_plain", "voc_val"),
        _derived("pascal_context_60_val", "pascal_context_60", "pascal_context_59_val", rest=True),
        _derived("coco_object_val", "coco_object", "coco_stuff_val", rest=True),
        _derived("coco_object_plain_val", "coco_object_plain", "coco_stuff_val", rest=True),
    )
}
"""Other readings of label maps that are prepared already, for evaluation: other words, or fewer classes and
all else as background. The ids of their class lists are values of those maps.
"""

SEEN_ONLY = "_seen"
"""Behind the name of a training split with flags: its photos that show at least one seen class.

The papers train on these; the others would teach that unseen things are background.
"""
UNFLAGGED = "_all"
"""Behind such a name: every photo, and no class counts as unseen; for supervised training."""
VARIANTS = tuple(
    f"{name}{ending}" for name in ("coco_stuff_train", "voc_train") for ending in (SEEN_ONLY, UNFLAGGED)
)
"""The names with an ending."""
