"""Make the label maps of PASCAL Context: 59 or 459 classes, splits train and val.

    python datasets/prepare_pascal_context.py --root datasets --workers 8
    python datasets/prepare_pascal_context.py --root datasets --workers 8 --classes 459 --split val

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import functools
import sys

from _command import parser, run

from twostage.data.prepare import pascal_context

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--classes", type=int, nargs="+", choices=(59, 459), default=[59])
    options.add_argument(
        "--annotations",
        choices=("auto", "json", "mat"),
        default="auto",
        help="trainval_merged.json or the folder trainval of MATLAB files; default: whichever is there",
    )
    given = options.parse_args()
    plan = functools.partial(
        pascal_context.plan, classes=sorted(set(given.classes)), annotations=given.annotations
    )
    sys.exit(run(given, plan))
