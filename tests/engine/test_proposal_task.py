"""Stage one as a task: what a checkpoint says of the vocabulary, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twostage.config import load_config
from twostage.data.loader import cut_masks
from twostage.data.sample import TrainBatch
from twostage.engine.checkpoint import CheckpointError, read_checkpoint
from twostage.engine.trainer import Trainer
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.tasks.proposals import ProposalTask, export_weights
from twostage.tasks.words import trained_vocabulary
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError

WORDS = "grass, sand|beach, ball"


def make_task(words: str = WORDS) -> ProposalTask:
    vocabulary = Vocabulary.from_words(words)
    network = MaskFormerProposals.tiny().network
    features = torch.nn.functional.normalize(torch.randn(len(vocabulary), 8), dim=1)
    text = TextBank(features, torch.arange(len(vocabulary)), len(vocabulary))
    solver = load_config(None).solver
    return ProposalTask(network, Criterion(LossConfig()), text, vocabulary, solver)


def make_batch(start: int = 0) -> TrainBatch:
    labels = torch.full((2, 32, 32), -1)
    labels[0, 4:20, 4:20], labels[0, 22:, :], labels[1, :8] = 0, 2, 1
    images = torch.randint(
        0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(start)
    )
    return cut_masks(images, labels, ["a", "b"])


def test_trains_and_stores_the_vocabulary(tmp_path: Path) -> None:
    words = ["solver.max_iter=2", "solver.ims_per_batch=2", f"output_dir={tmp_path}", "solver.accumulation=2"]
    task = make_task()
    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    final = Trainer(
        task, lambda start: iter([make_batch(i) for i in range(start, 5)]), load_config(None, words)
    ).run()
    stored = read_checkpoint(final)
    assert any(not torch.equal(before[name], tensor) for name, tensor in stored["model"].items())
    vocabulary = trained_vocabulary(stored, str(final))
    assert vocabulary.names == (("grass",), ("sand", "beach"), ("ball",))
    assert Vocabulary.from_words("boat, beach, ball").with_seen(
        name for synonyms in vocabulary.names for name in synonyms
    ).seen == (False, True, True)
    export_weights(final, tmp_path / "w.safetensors")
    shared = read_checkpoint(tmp_path / "w.safetensors")
    assert trained_vocabulary(shared, "w").names == vocabulary.names
    assert shared["model"]["query_embed.weight"].dtype == torch.float16
    other = make_task("boat")
    other.load_state_dict(shared, "w.safetensors", resuming=False)
    expected = stored["model"]["query_embed.weight"].half().float()
    assert torch.equal(other.module.query_embed.weight.detach(), expected)


def test_every_parameter_gets_a_gradient() -> None:
    """Several processes need it: a parameter without one stops them."""
    task = make_task()
    for labels in (make_batch().labels, torch.full((2, 32, 32), -1)):
        task.module.zero_grad(set_to_none=True)
        batch = cut_masks(make_batch().images, labels, ["a", "b"])
        torch.stack(list(task.losses(batch).values())).sum().backward()
        lacking = [name for name, p in task.module.named_parameters() if p.requires_grad and p.grad is None]
        assert lacking == []


def test_groups_cover_the_network_once() -> None:
    task = make_task()
    grouped = [id(parameter) for group in task.parameter_groups() for parameter in group["params"]]
    wanted = [id(parameter) for parameter in task.module.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(wanted)
    names = {group["name"] for group in task.parameter_groups()}
    assert {"backbone/weight", "head/weight", "head/norm", "head/embedding"} <= names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("grass, sand|beach, boat", "new here: boat; missing here: ball"),
        ("sand|beach, grass, ball", "the same names in another order or with other synonyms"),
    ],
)
def test_resuming_with_another_vocabulary(words: str, told: str) -> None:
    state = make_task().state_dict()
    with pytest.raises(VocabularyError, match=f"x.pth was trained on another vocabulary .*{told}"):
        make_task(words).load_state_dict(state, "x.pth", resuming=True)
    make_task(words).load_state_dict(state, "x.pth", resuming=False)


def test_what_does_not_fit() -> None:
    with pytest.raises(CheckpointError, match="does not say which classes"):
        trained_vocabulary({"model": {}}, "x.pth")
    with pytest.raises(CheckpointError, match=r"missing: backbone"):
        make_task().load_state_dict({"model": {}}, "x.pth", resuming=False)
    task = make_task()
    text = TextBank(torch.eye(8)[:2], torch.arange(2), 2)
    with pytest.raises(VocabularyError, match="text of 2 classes, a vocabulary of 3"):
        ProposalTask(task.module, Criterion(LossConfig()), text, task.vocabulary, load_config(None).solver)
