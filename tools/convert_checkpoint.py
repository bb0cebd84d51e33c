"""Convert published checkpoints of the two-stage baseline into files of this package, and back.

    python tools/convert_checkpoint.py model_final.pth --report
    python tools/convert_checkpoint.py model_final.pth stage_one.safetensors
    python tools/convert_checkpoint.py model_final.pth prompt.safetensors --what prompts
    python tools/convert_checkpoint.py model_final.pth clip.safetensors --what clip
    python tools/convert_checkpoint.py stage_one.safetensors model.pth --to published --clip clip.safetensors

A published checkpoint can also be named in MODEL.WEIGHTS as it is. Every tensor is accounted for; where one
is missing, left over or of another shape nothing is written. Files are read without running code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from twostage.conversion import FORMS, WHATS, Conversion, convert, examine
from twostage.errors import TwostageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and print the account; 1 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="left out with --report")
    parser.add_argument("--what", choices=WHATS, default="stage_one", help="the part to write")
    parser.add_argument("--to", choices=FORMS, default="twostage", help="the form to write it in")
    parser.add_argument("--clip", type=Path, help="--to published: the CLIP to put beside stage one")
    parser.add_argument("--prompt", type=Path, help="--to published: learned prompt vectors to put beside it")
    parser.add_argument("--repair", action="store_true", help="mend names of a stripped, re-saved checkpoint")
    parser.add_argument("--report", action="store_true", help="say what the file is and write nothing")
    options = parser.parse_args(arguments)
    if options.out is None and not options.report:
        parser.error("OUT is missing; --report alone needs none")
    try:
        if options.report:
            print(examine(options.source, options.repair).format())
            return 0
        conversion = Conversion(options.what, options.to, options.repair, options.clip, options.prompt)
        print(convert(options.source, options.out, conversion).format())
    except (TwostageError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.what}, {options.out.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
