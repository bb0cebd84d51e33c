"""The command `twostage`: every subcommand in a file of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from twostage import __version__
from twostage.cli import ablation, bench, data, dense, export, listings, proposals, segment
from twostage.errors import TwostageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status is 0, or 1 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="twostage", description="Label every pixel of a photo with your own words."
    )
    parser.add_argument("--version", action="version", version=f"twostage {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (segment, proposals, dense, ablation, bench, data, export, listings):
        module.add_commands(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return int(options.run(options))
    except (TwostageError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; files already written are whole.", file=sys.stderr)
        return 130
