"""Stage one against numbers recorded from the original system, with generated weights."""

import hashlib
from dataclasses import dataclass

import inputs
import numpy as np
import pytest
import torch
import weights
from stage_one import GOLDEN, assert_sampled, generated, golden_json, load_network
from torch import Tensor, nn

from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.maskformer.matcher import Costs, match
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.targets import padded_masks, shrink
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.types import TextBank

pytestmark = pytest.mark.golden


def picture(name: str, height: int, width: int) -> Tensor:
    return torch.from_numpy(inputs.image(name, height, width)).permute(2, 0, 1)


def check_network(case: str, network: MaskFormer, image: Tensor, tolerances: dict[str, float]) -> Tensor:
    """Everything up to the class embeddings of one image; returns those of the last layer."""
    network.eval()
    with torch.no_grad():
        levels = network.backbone(network.prepare(image[None]))
        mask_features, pyramid = network.pixel_decoder(levels)
        decoded = network._decode(levels, pyramid, mask_features)
        output = network(image[None])
    for name, level in zip(("res2", "res3", "res4", "res5"), levels, strict=True):
        assert_sampled(level, case, f"backbone.{name}", tolerances["backbone"])
    assert_sampled(output.mask_features, case, "mask_features", tolerances["mask_features"])
    assert_sampled(decoded, case, "decoder", tolerances["decoder"])
    assert_sampled(output.embeddings[-1], case, "class_embed", tolerances["class_embed"])
    assert_sampled(output.mask_logits[-1], case, "pred_masks", tolerances["pred_masks"])
    return output.embeddings[-1]


def test_weights_are_the_recorded_ones() -> None:
    """Digests of whole tensors: were the generator changed, every comparison below would mean nothing."""
    recorded = golden_json("weights_sha256")["tensors"]["r50"]
    made = generated("r50", lambda name: name in recorded and not name.startswith("clip_adapter.clip_model"))
    assert len(made) > 10
    digests = weights.digests({name: value.numpy() for name, value in made.items()})["tensors"]
    assert digests == {name: recorded[name] for name in made}


def test_r50(r50: MaskFormer, coco171: TextBank, tolerances: dict[str, float]) -> None:
    case = "r50_single_coco171"
    image = inputs.image("a", 300, 420)
    assert hashlib.sha256(image.tobytes()).hexdigest() == golden_json(case)["input_sha256"]
    embeddings = check_network(case, r50, picture("a", 300, 420), tolerances)
    no_object = torch.nn.functional.normalize(r50.class_head.no_object.detach(), dim=1)
    assert_sampled(
        torch.cat([coco171.features, no_object]), case, "text_features", tolerances["text_features"]
    )
    logits = r50.class_logits(embeddings, coco171)
    assert_sampled(logits, case, "pred_logits", tolerances["pred_logits"])
    recorded = np.load(GOLDEN / f"{case}.npz")["pred_logits.argmax"]
    assert logits[0].argmax(dim=1).tolist() == recorded.tolist()


def test_r50_proposals(r50: MaskFormer, coco171: TextBank, tolerances: dict[str, float]) -> None:
    case = "r50_single_coco171"
    (found,) = MaskFormerProposals(MaskFormerProposals.Config(), r50).propose(
        [picture("a", 300, 420)], coco171
    )
    assert_sampled(found.masks, case, "w08/mask_probs", tolerances["mask_probs"])
    assert found.logits is not None
    # Stage one alone mixes its masks with exactly these probabilities.
    assert_sampled(found.logits.probs(), case, "stage_one_only/scores", tolerances["scores"] / 10)
    torch.testing.assert_close(found.scores, found.logits.probs().amax(dim=1))


def test_r101c(tolerances: dict[str, float]) -> None:
    check_network("r101c_vild_context59", load_network("r101c"), picture("b", 240, 320), tolerances)


@dataclass(frozen=True)
class Batch:
    """The part of a training batch that the losses read."""

    masks: list[Tensor]
    classes: list[Tensor]
    labels: Tensor
    image_ids: list[str]


def batch_of(case: dict) -> tuple[list[Tensor], Batch]:
    """Images and targets of a recorded case, checked against the recorded digests."""
    images, masks, classes = [], [], []
    for item in case["batch"]:
        name, height, width = item["image"], item["height"], item["width"]
        images.append(picture(name, height, width))
        labels, regions = inputs.target(name, height, width, len(case["classes"]), item["requested_masks"])
        kept = regions.any(axis=(1, 2))
        assert hashlib.sha256(regions[kept].tobytes()).hexdigest() == item["masks_sha256"]
        assert labels[kept].tolist() == item["labels"]
        masks.append(torch.from_numpy(regions[kept]))
        classes.append(torch.from_numpy(labels[kept]))
    return images, Batch(masks, classes, torch.zeros(0), [item["image"] for item in case["batch"]])


def gradient_norm(module: nn.Module | nn.Parameter) -> float:
    parameters = [module] if isinstance(module, nn.Parameter) else module.parameters()
    return sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None) ** 0.5


def gradient_parts(network: MaskFormer) -> dict[str, nn.Module | nn.Parameter]:
    decoder, head = network.pixel_decoder, "sem_seg_head"
    parts: dict[str, nn.Module | nn.Parameter] = {"all": network}
    for name in ("stem", "res2", "res3", "res4", "res5"):
        parts[f"backbone.{name}"] = getattr(network.backbone, name)
    for index, lateral in enumerate(decoder.laterals, start=1):
        parts[f"{head}.pixel_decoder.adapter_{index}"] = lateral
    for index, output in enumerate(decoder.outputs, start=1):
        parts[f"{head}.pixel_decoder.layer_{index}"] = output
    parts[f"{head}.pixel_decoder.mask_features"] = decoder.mask_features
    parts[f"{head}.predictor.transformer"] = network.decoder
    parts[f"{head}.predictor.query_embed"] = network.query_embed
    parts[f"{head}.predictor.input_proj"] = network.memory_projections
    parts[f"{head}.predictor.mask_embed"] = network.mask_embed
    parts[f"{head}.predictor.class_embed"] = network.class_head.perceptron
    parts["clip_adapter.non_object_embedding"] = network.class_head.no_object
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["losses_r50", "losses_r50_empty_image"])
def test_losses(name: str, r50: MaskFormer, coco171: TextBank, tolerances: dict[str, float]) -> None:
    case = golden_json(name)
    every = golden_json("r50_single_coco171")["classes"]
    rows = [every.index(word) for word in case["classes"]]
    text = TextBank(coco171.features[rows], torch.arange(len(rows)), len(rows))
    images, batch = batch_of(case)
    r50.train()
    r50.zero_grad()
    output = r50(images)
    logits = r50.class_logits(output.embeddings, text)
    losses = Criterion(LossConfig())(output, logits, batch)
    assert set(losses) == set(case["weighted_losses"])
    for term, value in case["weighted_losses"].items():
        assert losses[term].item() == pytest.approx(value, abs=tolerances["losses"]), term

    small = [
        shrink(m, output.mask_logits.shape[-2:]) for m in padded_masks(batch, (320, 448), torch.device("cpu"))
    ]
    pairs = match(output.mask_logits, logits, small, batch.classes, Costs())
    for layer, found in zip(("0", "1", "2", "3", "4", "last"), pairs, strict=True):
        got = [{"query": q.tolist(), "target": m.tolist()} for q, m in found]
        assert got == case["matching"][layer], f"layer {layer}"

    sum(losses.values()).backward()
    for part, module in gradient_parts(r50).items():
        recorded = case["gradient_norm"][part]
        assert gradient_norm(module) == pytest.approx(recorded, rel=tolerances["gradient_norm_relative"]), (
            part
        )
    assert set(gradient_parts(r50)) == set(case["gradient_norm"])
    r50.zero_grad()
