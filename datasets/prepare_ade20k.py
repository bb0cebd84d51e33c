"""Make the label maps of ADE20K: 150 classes (scene parsing challenge) or 847 (full data set).

    python datasets/prepare_ade20k.py --root datasets --workers 8
    python datasets/prepare_ade20k.py --root datasets --workers 8 --classes 847 --split validation

Splits are training and validation. With 847 classes large photos are shrunk too, into images_847.

Run it again after an interruption: finished label maps are kept. What has to lie where: datasets/README.md.
"""

from __future__ import annotations

import sys

from _command import parser, run

from twostage.data.prepare import ade20k, ade20k_full

if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--classes", type=int, choices=(150, 847), default=150)
    given = options.parse_args()
    sys.exit(run(given, ade20k.plan if given.classes == 150 else ade20k_full.plan))
