"""Make the label maps of Cityscapes: 19 classes, splits train and val.

    python datasets/prepare_cityscapes.py --root datasets --workers 8

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import sys

from _command import parser, run

from twostage.data.prepare import cityscapes

if __name__ == "__main__":
    sys.exit(run(parser(__doc__).parse_args(), cityscapes.plan))
