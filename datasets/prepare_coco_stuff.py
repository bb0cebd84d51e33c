"""Make the label maps of COCO-Stuff 164k: 171 classes, splits train2017 and val2017.

    python datasets/prepare_coco_stuff.py --root datasets --workers 8

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import sys

from _command import parser, run

from twostage.data.prepare import coco_stuff

if __name__ == "__main__":
    sys.exit(run(parser(__doc__).parse_args(), coco_stuff.plan))
