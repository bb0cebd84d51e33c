"""Options of looking at fewer masks."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class SkipConfig:
    """Masks that stage two need not look at. What each costs in labels is measured in docs/benchmarks.md."""

    bounded: bool = option(
        False,
        "Leave out masks that cannot change any pixel's label, whatever CLIP said of them: proven from stage "
        "one's scores and the masks, so labels stay as they are (confidence and class maps do not)",
    )
    tolerance: float = option(
        0.0,
        "With BOUNDED, the share of a photo's labels that may change; what changes is never more, and more "
        "masks are left out",
        least=0,
        most=1,
    )
    duplicates: float = option(
        0.0,
        "Masks that overlap a better one by this IoU take its CLIP scores; 0 looks at every mask",
        least=0,
        most=1,
    )
    winners: int = option(
        0,
        "Look only at masks that are the strongest on this many pixels, by stage one's scores; the others "
        "keep an even opinion of all classes. 0 looks at every mask",
        least=0,
    )
