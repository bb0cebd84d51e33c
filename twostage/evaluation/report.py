"""The results of several systems on one data set: tables for people, one JSON file for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage.data.atomic import replacing
from twostage.errors import TwostageError
from twostage.evaluation.metrics import Metrics
from twostage.evaluation.recall import Recall

COLUMNS = ("seen", "unseen", "hIoU", "mIoU", "mIoU_skip", "pAcc", "mAcc", "fwIoU")
"""The columns of the summary, in percent; `_skip` is the other mIoU convention (see metrics)."""

Row = Mapping[str, Any]
"""One system: "system" (its name) and the entries of Metrics.as_dict()."""


def row(system: str, metrics: Metrics, **extra: Any) -> dict[str, Any]:
    """The row of one system; `extra` is plain data to keep beside its numbers (images, seconds, settings)."""
    return {"system": system, **metrics.as_dict(), **extra}


def summary_table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """One line a system, one decimal, "-" where there is no number."""
    body = [[str(entry["system"]), *(_number(entry.get(column)) for column in columns)] for entry in rows]
    return _aligned([["system", *columns], *body])


def class_table(rows: Sequence[Row]) -> str:
    """IoU of every class under every system, with its seen flag and its share of the true pixels."""
    classes = rows[0]["classes"] if rows else []
    total = sum(entry["gt_pixels"] for entry in classes) or 1
    lines = [["class", "", "% pixels", *(str(entry["system"]) for entry in rows)]]
    for position, entry in enumerate(classes):
        flag = {True: "seen", False: "unseen", None: ""}[entry["seen"]]
        values = [_number(other["classes"][position]["IoU"]) for other in rows]
        lines.append([entry["name"], flag, _number(100 * entry["gt_pixels"] / total), *values])
    return _aligned(lines, text_columns=2)


def recall_table(recalls: Mapping[str, Recall]) -> str:
    """One line a group of true masks: their number, recall at IoU 0.5 and 0.75, mean best IoU."""
    lines = [["proposals", "masks", "recall@.5", "recall@.75", "mean best IoU"]]
    for name, recall in recalls.items():
        numbers = (recall.recall_50, recall.recall_75, recall.mean_best_iou)
        lines.append([name, str(recall.masks), *(_number(value) for value in numbers)])
    return _aligned(lines)


def proposal_table(rows: Sequence[Row], recall: bool) -> str:
    """One line a photo: how many masks, how large (percent of the photo), how much they cover and overlap.

    rows: as runs.proposal_report.Report.row gives them; recall: whether to add what they find of the truth.
    """
    areas, thresholds = ("min", "median", "max"), ("50", "75", "90")
    head = ["photo", "masks", *(f"area % {name}" for name in areas), "covered %", "overlap"]
    lines = [[*head, *((*(f"R@.{name}" for name in thresholds), "best IoU") if recall else ())]]
    for row in rows:
        cells = [str(row["name"]), f"{round(row['masks'], 1):g}"]
        cells += [_number(row["area_percent"][name], 2) for name in areas]
        cells += [_number(row["covered_percent"]), _number(row["overlap"], 2)]
        if recall:
            cells += [_number(row["recall_percent"][name]) for name in thresholds]
            cells.append(_number(row["mean_best_iou_percent"]))
        lines.append(cells)
    return _aligned(lines)


def write_results(path: str | Path, rows: Sequence[Row], provenance: Mapping[str, Any], **extra: Any) -> Path:
    """Write results.json: {"systems": rows, "provenance": ..., **extra}; whole or not at all.

    Numbers stay unrounded; what is not a number is null.

    Raises:
        TwostageError: two rows of one name, or a value that JSON cannot hold.
    """
    names = [str(entry["system"]) for entry in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TwostageError(
            f"{path}: each system needs a name of its own, but these occur twice: {', '.join(twice)}."
        )
    content = {"systems": list(rows), **extra, "provenance": dict(provenance)}
    text = json.dumps(_plain(content, str(path)), indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as stream:
        stream.write((text + "\n").encode())
    return Path(path)


def _plain(value: Any, where: str) -> Any:
    """The same data in the types that JSON knows: NaN and infinities become null, unknown types are
    refused.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TwostageError(
        f"{where}: expected plain data, got {type(value).__name__}: convert it before writing."
    )


def _number(value: Any, decimals: int = 1) -> str:
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    return "-" if nothing else f"{value:.{decimals}f}"


def _aligned(lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Columns of equal width, the first ones flush left, numbers flush right, a rule below the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(out)
