"""The parity checklist of zero-shot mask classification: the rows that no other test carries by name.

Rows 5 to 11, 14 and 18 stand as test_checklist_NN beside the parts they concern.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from twostage.clip.prompts import fill, load_templates
from twostage.config import SolverConfig
from twostage.data.loader import cut_masks
from twostage.engine.optimizer import clip_gradients
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import compute
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.pixel_decoder import PixelDecoder
from twostage.maskformer.position import sine_positions
from twostage.maskformer.resnet import ConvNorm
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary


def test_checklist_01_multi_grid_and_output_stride() -> None:
    backbone = MaskFormer(MaskFormerConfig()).backbone
    middles = [
        module for name, module in backbone.named_modules() if ".conv2" in f".{name}" and "res5" in name
    ]
    assert [m.dilation[0] for m in middles if isinstance(m, ConvNorm)] == [1, 2, 4]
    with torch.no_grad():
        sizes = [level.shape[-1] for level in backbone(torch.zeros(1, 3, 64, 64))]
    assert sizes == [16, 8, 4, 2]


def test_checklist_02_laterals_are_not_rectified_and_mask_features_have_a_bias() -> None:
    decoder = PixelDecoder((8, 8, 8, 8), 16, 4)
    seen: list[torch.Tensor] = []
    decoder.laterals[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    levels = [torch.randn(1, 8, size, size) for size in (16, 8, 4, 2)]
    features, _ = decoder(levels)
    assert (seen[0] < 0).any()
    assert (features < 0).any()
    assert decoder.mask_features.bias is not None
    assert all(lateral.conv.bias is None for lateral in decoder.laterals)


def test_checklist_03_the_shared_norm_is_on_every_layer() -> None:
    network = MaskFormerProposals.tiny().network.eval()
    torch.nn.init.zeros_(network.decoder.norm.weight)
    torch.nn.init.zeros_(network.decoder.norm.bias)
    with torch.no_grad():
        output = network(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    assert len(output.embeddings) == 2
    for layer in output.embeddings:  # nothing of the queries is left, in no layer
        torch.testing.assert_close(layer, output.embeddings[0][:, :1].expand_as(layer))


def test_checklist_04_positions_start_at_one() -> None:
    height, width, dim = 3, 5, 16
    made = sine_positions(height, width, dim).reshape(dim, height, width)
    for y, x, channel in [(0, 0, 0), (2, 4, 3), (1, 2, 9), (0, 3, 14)]:
        place, last = (y + 1, height) if channel < dim // 2 else (x + 1, width)
        index = channel % (dim // 2)
        angle = place / (last + 1e-6) * 2 * math.pi / 10000 ** (2 * (index // 2) / (dim // 2))
        expected = math.cos(angle) if index % 2 else math.sin(angle)
        assert made[channel, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_checklist_12_a_class_that_is_only_predicted_lowers_miou() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    row = compute(confusion, Vocabulary.from_words("a, b, c")).as_dict()
    assert row["mIoU"] == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert row["mIoU_skip"] == pytest.approx(100 * (1 + 0.5) / 2)


def test_checklist_13_class_loss_is_divided_by_the_sum_of_weights() -> None:
    torch.manual_seed(0)
    network = MaskFormerProposals.tiny().network.eval()
    text = TextBank(F.normalize(torch.randn(3, 8), dim=1), torch.arange(3), 3)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    batch = cut_masks(images, torch.full((1, 64, 64), -1, dtype=torch.int64), ["nothing there"])
    with torch.no_grad():
        output = network(images)
        logits = network.class_logits(output.embeddings, text)
        losses = Criterion(LossConfig())(output, logits, batch)
    # All queries are "no object", whose weight of 0.1 cancels: the plain mean is left.
    expected = -logits[-1].log_softmax(-1)[..., -1].mean()
    assert losses["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_checklist_15_the_gradient_is_clipped_over_all_parameters_together() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert SolverConfig().clip_gradients == 0.01
    assert float(clip_gradients(parameters, 0.01)) == pytest.approx(5.0)
    assert np.allclose([parameters[0].grad[0], parameters[1].grad[0]], [0.006, 0.008], rtol=1e-4)


def test_checklist_16_names_lose_outer_blanks_and_keep_commas() -> None:
    words = Vocabulary((("window ",), ("road, route",)))
    prompts = [fill("a sculpture of a {}.", name) for name in words.shown]
    assert prompts == ["a sculpture of a window.", "a sculpture of a road, route."]


def test_checklist_17_templates_keep_their_uneven_punctuation() -> None:
    vild = load_templates("vild")
    assert len(vild) == 14
    assert [template.endswith(".") for template in vild[:5]] == [True, False, False, False, False]
    imagenet = load_templates("imagenet")
    assert len(set(imagenet)) == 80
    assert all(template.endswith("{}.") or template.endswith(".") for template in imagenet)
