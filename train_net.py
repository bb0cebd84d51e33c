#!/usr/bin/env python
"""Trains or evaluates.

python train_net.py --config-file configs/shapes/zero_shot.yaml
python train_net.py --config-file FILE --num-gpus 8 SOLVER.BASE_LR 2e-4 output_dir=output/b
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/model_final.pth
python train_net.py --config-file FILE --dry-run
torchrun --nproc-per-node 2 train_net.py --config-file FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from twostage.config import Config, load_config
from twostage.engine.distributed import launch
from twostage.engine.events import run_output
from twostage.engine.signals import TrainingInterrupted
from twostage.errors import TwostageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, 1 after an error that the user can mend, or 128 + signal."""
    options = parse(arguments)
    try:
        config = load_config(options.config_file, options.opts)
        if options.dry_run:
            return show_plan(config)
        place = (options.num_gpus, options.num_machines, options.machine_rank, options.dist_url)
        return launch(work, *place, args=(config, options.resume, options.eval_only))
    except TwostageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def work(config: Config, resume: bool, eval_only: bool) -> int:
    """One process's share, and its exit status."""
    from twostage import build

    try:
        with run_output(config):
            if eval_only:
                build.evaluate(config, resume=resume)
            else:
                build.train(config, resume=resume)
    except TwostageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.exit_code
    return 0


def show_plan(config: Config) -> int:
    """Says what a run would use and what is missing; 1 where the configuration itself is wrong."""
    from twostage.runs.dry_run import dry_run

    plan = dry_run(config)
    print(plan.format())
    return 1 if plan.wrong else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line that Detectron2's users know."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="YAML file; without one the defaults count (configs/Base.yaml)")
    add("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    add(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS, or with --resume the newest checkpoint, going on with the counts of an "
        "evaluation of it that was stopped (alone: TEST.RESUME True)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would run, how large it is and which data and weights are missing; needs neither",
    )
    add("--num-gpus", type=int, help="processes on this machine, one a GPU; default: one process")
    add("--num-machines", type=int, default=1)
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="address of the first machine, tcp://HOST:PORT")
    add(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="options, as in SOLVER.MAX_ITER 100 or seed=1",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
