"""A checkpoint's weights, trained vocabulary and network options as one small file to share.

python tools/export_weights.py output/shapes/model_final.pth shapes.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from twostage.errors import TwostageError
from twostage.tasks.proposals import export_weights


def main() -> int:
    """Write the file; 1 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--fp32", action="store_true", help="keep full precision; the default is fp16")
    options = parser.parse_args()
    try:
        export_weights(options.checkpoint, options.out, half=not options.fp32)
    except TwostageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
