"""Store the proposals of a generator for every image of a data set, for use by PROPOSALS.NAME cached.

    python tools/cache_proposals.py --config-file FILE.yaml --dataset folder:/data/mine@val --out cache/mine
    python tools/cache_proposals.py ... --format coco --out cache/mine.json

Run it again after an interruption: stored images are skipped. To use what was stored, override
PROPOSALS.NAME cached PROPOSALS.OPTIONS.path OUT
"""

from __future__ import annotations

import argparse
import functools
import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from twostage.errors import TwostageError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="YAML that names the proposal generator")
    parser.add_argument("--dataset", required=True, help="catalog name, or folder:PATH@SPLIT")
    parser.add_argument("--out", required=True, help="folder for npz, .json file for coco")
    parser.add_argument("--format", choices=("npz", "coco"), default="npz")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the configuration"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 with a message on stderr when something given cannot be used."""
    given = parse_arguments(arguments)
    try:
        return _run(given)
    except TwostageError as error:
        print(f"cache_proposals: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    # Imported here so that --help answers at once.
    from twostage.build import build_proposals
    from twostage.config import load_config
    from twostage.data import catalog
    from twostage.data.transforms import resize_for_test
    from twostage.proposals._caching import cache

    config = load_config(given.config_file, given.overrides)
    dataset = catalog.get(given.dataset, config.datasets.root)
    resize = functools.partial(
        resize_for_test, min_size=config.input.min_size_test, max_size=config.input.max_size_test
    )
    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(dataset.name, total=len(dataset))
        summary = cache(
            dataset,
            build_proposals(config),
            given.out,
            given.format,
            resize,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(
        f"{summary.written} images written with {summary.masks} masks, {summary.skipped} were there: "
        f"{given.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
