"""Options of self-training."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twostage.config.option import option


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Learning from one's own labels of the unseen classes (TASK self_training)."""

    teacher: str = option(
        "trained",
        "Who makes the first labels: trained (the system with a network trained on the seen classes, or with "
        "MODEL.WEIGHTS), or dense (DENSE alone, as in MaskCLIP+: nothing is trained before the student)",
        choices=("trained", "dense"),
    )
    keep_seen: bool = option(
        True,
        "Keep the ground truth of seen classes and label the rest; false: use no ground truth at all, every "
        "pixel is labelled (annotation-free)",
    )
    prior: bool = option(
        True,
        "Label every pixel without ground truth of a seen class (ignored or unseen: training cannot tell "
        "them apart) with unseen classes only; false: with any class",
    )
    score: str = option(
        "share",
        "The probability that REJECT_THRESHOLD speaks of: the label's share of what all classes have at the "
        "pixel, of what the classes have that may win there, or the paper's softmax over the class map",
        choices=("share", "posterior", "softmax"),
    )
    reject_threshold: float = option(0.0, "Pixels whose label is less probable become void", least=0, most=1)
    beaten: str = option(
        "keep",
        "With PRIOR, what becomes of a pixel where a seen class has more than the best unseen one: keep the "
        "unseen one (the paper), or void, for data with a background that no class names",
        choices=("keep", "void"),
    )
    max_images: int = option(
        0, "Label and learn only so many training photos, evenly spread; 0 takes all", least=0
    )
    start: str = option(
        "scratch",
        "What the student starts from: scratch (what the teacher's training started from, where it is a "
        "backbone in MODEL.WEIGHTS), teacher (the trained teacher; after a dense one the first student "
        "begins as from scratch, later ones from the student before), or a file, such as a "
        "backbone's weights",
    )
    max_iter: int = option(0, "Updates of the student; 0 takes SOLVER.MAX_ITER", least=0)
    guided_iter: int = option(
        0, "Updates of the first student where TEACHER is dense; 0 takes the same as others", least=0
    )
    base_lr: float = option(0.0, "Learning rate of the student; 0 takes SOLVER.BASE_LR", least=0)
    ensemble: dict[str, Any] = option(
        {}, "ENSEMBLE.OPTIONS that change when the student is measured, for it knows more classes"
    )
    rounds: int = option(
        1, "How often labelling and learning are done, each student labelling for the next", least=1
    )
