"""SC-CLIP and SFP: patches that stand out are repaired, like patches averaged, middle blocks added.

Both compare what leaves block 8 and block 3, and send the sum of what leaves blocks 3 to 9 through the last
attention a second time. They differ in how outliers are found and in where the last block looks.
"""

from __future__ import annotations

from dataclasses import replace

from twostage.readout.knobs import ClassOverSelf, Knobs, LocalOutliers, Smoothing
from twostage.readout.preset import LOCAL, Preset, figures

CALIBRATED: Knobs = replace(
    LOCAL,
    attention="0.5 * similarity(8, 1, 3) + 0.5 * kk",
    keys="patches",
    repair=LocalOutliers(neighbours=30, share=0.05),
    class_token=0.3,
    smooth_before=Smoothing(after=8, cut=0.4),
    smooth_after=Smoothing(after=3, cut=0.4),
    levels=(3, 10),
)

PRESETS = (
    Preset(
        "scclip",
        "SC-CLIP",
        "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation; Bai et al.; arXiv 2411.15869",
        CALIBRATED,
        published=figures(64.6, 36.8, 37.7, 84.3, 40.1, 26.6, 41.0, 20.1),
        note="any grid and batch; the released code takes one square image at a time",
    ),
    Preset(
        "sfp",
        "SFP",
        "Feature Purification Matters; Jin, Yu, Zhang, Sun, Dong, Xiao; ICCV 2025",
        replace(
            CALIBRATED,
            attention="1/3 * kk + 1/3 * qq + 1/3 * similarity(8, 1, 3, 0.4)",
            repair=ClassOverSelf(factor=1.5, most=10),
            levels_attention="similarity(8, 1, 3, 0.4)",
        ),
        published=figures(62.9, 37.2, 37.9, 84.5, 39.9, 26.4, 41.1, 20.8),
        note=(
            "the authors' figures; PEARL's run of their code gives 56.8, 32.3, 32.1, 83.4, 36.0, 24.0, 34.1, "
            "18.1 in the same order"
        ),
    ),
)
