"""ImageNet weights of a backbone in Detectron2's names, for the start of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from twostage.published.recognise import Kind
from twostage.published.report import Report, compare
from twostage.published.stage_one import which_backbone

PREFIX = "backbone."
_CLASSIFIERS = ("stem.fc.", "fc.", "linear.")
_COUNTERS = ".num_batches_tracked"


@dataclass(frozen=True)
class BackboneWeights:
    """Tensors by the names inside our backbone; name: r50 or r101c."""

    report: Report
    name: str
    tensors: Mapping[str, Tensor]


def read_backbone(
    model: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str
) -> BackboneWeights:
    """The backbone's tensors, and nothing but them.

    shapes: what the network at hand needs, by names inside its backbone.

    Raises:
        PublishedError: of another backbone than the network's, or anything is missing, left over or of
            another shape.
    """
    name = which_backbone(model, "", where)
    ignored = {
        "ImageNet's classifier, which segmentation has no use for": [
            key for key in model if key.startswith(_CLASSIFIERS)
        ],
        "counters of the normalisation, which stays as it is": [
            key for key in model if key.endswith(_COUNTERS)
        ],
    }
    left_out = {key for names in ignored.values() for key in names}
    own = {key: tensor for key, tensor in model.items() if key not in left_out}
    missing, unexpected, unfit = compare(shapes, own)
    report = Report(
        where,
        f"{Kind.BACKBONE.value} ({name})",
        {"the backbone": len(own)},
        {reason: names for reason, names in ignored.items() if names},
        missing,
        unexpected,
        unfit,
    )
    report.require_complete(
        f"The file holds {name}: the network needs that backbone too (MODEL.MASK_FORMER.BACKBONE {name})."
    )
    return BackboneWeights(report, name, own)
