"""Make the label maps of PASCAL VOC 2012: 20 classes, splits train_aug and val.

    python datasets/prepare_voc.py --root datasets --workers 8

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import sys

from _command import parser, run

from twostage.data.prepare import voc

if __name__ == "__main__":
    sys.exit(run(parser(__doc__).parse_args(), voc.plan))
