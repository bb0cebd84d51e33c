"""Every miniature by the name of its class list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from miniature import Miniature
from miniature_ade_full import ade_full
from miniature_context import context, context_matlab
from miniature_pixels import ade, coco, streets, voc2012, voc2012_with_background

BUILDERS: dict[str, Callable[[Path], Miniature]] = {
    "coco_stuff": coco,
    "voc": voc2012,
    "voc21": voc2012_with_background,
    "pascal_context_59": context,
    "pascal_context_459": context_matlab,
    "ade20k_150": ade,
    "ade20k_847": ade_full,
    "cityscapes": streets,
}
