"""Make the label maps of PASCAL VOC 2012: 20 classes, splits train_aug and val; or 21 with background, val.

    python datasets/prepare_voc.py --root datasets --workers 8
    python datasets/prepare_voc.py --root datasets --workers 8 --classes 21

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import functools
import sys

from _command import parser, run

from twostage.data.prepare import voc

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--classes", type=int, nargs="+", choices=(20, 21), default=[20])
    given = options.parse_args()
    sys.exit(run(given, functools.partial(voc.plan, classes=sorted(set(given.classes)))))
