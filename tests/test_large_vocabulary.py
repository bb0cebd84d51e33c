"""847 classes on a photo of 1300 x 2000 pixels: the memory of an evaluation, measured by the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
LIMIT_GIB = 1.5

MEASURE = """
import torch
from twostage.builder import Builder
from twostage.networks import Trained
from twostage.config import load_config
from twostage.data.sample import Sample
from twostage.evaluation import runner
from twostage.segmenter import Words
from twostage.systems import systems
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary

def kilobytes(entry):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(entry))

class Photo:
    name = "one photo"
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(847)), (True, False) * 423 + (True,))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = torch.randint(0, 256, (3, 1300, 2000), dtype=torch.uint8)
        labels = torch.randint(-1, 60, (13, 20), dtype=torch.int32)
        return Sample(image, labels.repeat_interleave(100, 0).repeat_interleave(100, 1), "photo")

torch.manual_seed(0)
config = load_config("configs/shapes/zero_shot.yaml", [
    "MODEL.WEIGHTS=", "MODEL.MASK_FORMER.NUM_QUERIES=100", "INPUT.MIN_SIZE_TEST=512",
    "INPUT.MAX_SIZE_TEST=2048", "DENSE.NAME=", "ENSEMBLE.OPTIONS.UNCOVERED=argmax"
])
builder = Builder(config)
builder.trained = Trained(builder.network().eval(), ())
segmenter = builder.segmenter()
words = Words(Photo.vocabulary, TextBank(
    torch.nn.functional.normalize(torch.randn(847, builder.clip.dim), dim=1), torch.arange(847), 847
))
compared = systems(segmenter, ["ensemble", "oracle classes"])
before = kilobytes("VmRSS")
outcome = runner.evaluate(segmenter, Photo(), words, compared)
assert outcome.images == 1 and len(outcome.metrics["ensemble"].classes) == 847
print("GIB", (kilobytes("VmHWM") - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory is read from /proc, which only Linux has")
def test_the_largest_vocabulary_is_safe() -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.split("GIB")[1])
    assert peak < LIMIT_GIB, f"{peak:.2f} GiB beyond the model"
    assert peak > 0.05, "a photo and its masks take more than that: the measure is broken"
