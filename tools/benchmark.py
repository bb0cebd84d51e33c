"""Measure what the pipeline costs beside the networks it cannot do without.

    python tools/benchmark.py stage2 --masks 100 --size 640x480 --rounds 3 --json stage2.json
    python tools/benchmark.py dense --size 336x336 --rounds 7 --json dense.json

`stage2` runs in turns (a) the bare CLIP image tower on ready crops and (b) the whole second stage (masks,
boxes, crops, CLIP, class logits) in the same chunks and number format, and reports the ratio of the medians.
`pipeline` runs in turns the whole of it as published (one batch of 100 crops in fp32, work of the photo's
size for every mask, class maps resized), ours in several modes, and the floors beneath: bare CLIP on ready
crops, stage one's bare network, a copy of the masks. It tells how many labels are equal, and the peak memory.
`dense` runs in turns the bare image tower and every dense readout that looks once, on the same pixels, and
then the memory that sliding windows take. Weights are random: they do not change the work. Only ratios mean
something on a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import bench_dense
import bench_pipeline
import bench_stage2
import bench_world
from bench_common import DTYPES

from twostage.errors import TwostageError


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 640x480, got {text!r}") from error
    return width, height


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; each benchmark is a subcommand with its function as `run` and its `table`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    stage2 = commands.add_parser("stage2", help="the second stage beside the bare CLIP forward")
    stage2.set_defaults(run=bench_stage2.stage_two, table=bench_stage2.table)
    stage2.add_argument("--masks", type=int, default=100, help="masks in the picture")
    stage2.add_argument("--size", type=_size, default=(640, 480), help="WIDTHxHEIGHT of the picture")
    stage2.add_argument("--chunk", type=int, default=8, help="crops in one CLIP batch")
    dense = commands.add_parser("dense", help="dense readouts beside the bare image tower")
    dense.set_defaults(run=bench_dense.dense, table=bench_dense.table)
    dense.add_argument(
        "--presets", nargs="+", help="readouts to measure (default: all that look once and need no helper)"
    )
    dense.add_argument("--size", type=_size, default=(336, 336), help="WIDTHxHEIGHT of the pixels")
    dense.add_argument("--batch", type=int, default=1, help="images in one pass")
    dense.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    dense.add_argument(
        "--windows",
        type=int,
        nargs="*",
        default=[9, 81],
        help="numbers of sliding windows (squares) whose memory is measured; none: leave that out",
    )
    dense.add_argument("--memory-presets", nargs="+", default=["maskclip"], help="readouts for that")
    whole = commands.add_parser("pipeline", help="a photo from pixels to labels beside the yardstick")
    whole.set_defaults(run=bench_pipeline.pipeline, table=bench_pipeline.table)
    whole.add_argument("--masks", type=int, default=100, help="masks in the picture, stage one's queries")
    whole.add_argument("--size", type=_size, default=(640, 480), help="WIDTHxHEIGHT of the picture")
    whole.add_argument("--short-edge", type=int, default=640, help="short edge at which it is looked at")
    whole.add_argument("--backbone", default="r101c", help="of stage one's network")
    whole.add_argument("--avoiding", action="store_true", help="also the ways to look at fewer masks")
    whole.add_argument("--compiled", action="store_true", help="also with CLIP compiled (a minute more)")
    whole.add_argument("--no-peaks", action="store_true", help="leave the peaks of memory out")
    world = commands.add_parser("world", help="what saving work costs in labels, with trained networks")
    world.set_defaults(run=bench_world.world, table=bench_world.table)
    world.add_argument("--scenes", type=int, default=200, help="drawn scenes")
    world.add_argument("--data", default="shapes_val", help="data set of drawn scenes")
    world.add_argument("--photos", nargs="+", metavar="PLACE", help="photos or folders of them instead")
    world.add_argument("--shipped", action="store_true", help="with the shipped system's dense branch")
    world.add_argument("--vit", action="store_true", help="CLIP is the miniature VisionTransformer")
    world.add_argument("--json", type=Path, help="write the report here")
    for command, rounds in ((stage2, 3), (dense, 7), (whole, 3)):
        if command is not whole:
            command.add_argument("--dtype", nargs="+", choices=sorted(DTYPES), default=["fp32", "bf16"])
        command.add_argument(
            "--rounds", type=int, default=rounds, help="counted rounds of each run, after one that is not"
        )
        command.add_argument("--classes", type=int, default=171)
        command.add_argument("--model", default="ViT-B-16")
        command.add_argument("--json", type=Path, help="write the report here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, print its table, write its report."""
    options = parse(arguments)
    try:
        report = options.run(options)
    except TwostageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(options.table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
