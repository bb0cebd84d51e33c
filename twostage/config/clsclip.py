"""Options of ClsCLIP's training and evaluation."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class ClsClipConfig:
    """Finding one word at a time (TASK clsclip): which classes are held out, and how pairs are judged."""

    fold: list[int] = option(
        [],
        "Folds whose classes are held out, from 0, one training for each; empty: the classes that the data "
        "set marks unseen",
        least=0,
    )
    folds: int = option(4, "Number of folds", least=2)
    fold_order: str = option(
        "contiguous",
        "Which classes a fold holds out: a run of neighbours in the class list (PASCAL-5i, and COCO-20i as "
        "some have it), or every FOLDS-th (COCO-20i as others have it)",
        choices=("contiguous", "interleaved"),
    )
    classes: int = option(
        0,
        "Only so many classes of the list, the first ones, take part and the others are background; 0 takes "
        "all (COCO's things: 80)",
        least=0,
    )
    unlabelled: str = option(
        "ignore",
        "What pixels without a label are: ignored, or background to every word, for data whose label maps "
        "leave the background out (VOC)",
        choices=("ignore", "background"),
    )
    min_area: int = option(2048, "Masks with fewer pixels in a training crop are not learned from", least=1)
    absent: float = option(
        0.0,
        "Share of training samples that ask for a class which the crop does not show; the paper asks for "
        "present ones only",
        least=0,
        most=1,
    )
    thresholds: list[float] = option(
        [0.0], "Logits above which a pixel counts as found; one row of results for each"
    )
    rule: str = option(
        "threshold",
        "When a pixel counts as found: its logit is above the threshold, or it is the largest among all "
        "classes that take part, for dense heads that were not trained to say no",
        choices=("threshold", "argmax"),
    )
