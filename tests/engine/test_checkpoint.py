"""Checkpoints: whole or absent, plain data only, strict, and the newest readable one found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_task import ToyTask, make_batches, toy_config

from twostage.engine.checkpoint import (
    Checkpointer,
    CheckpointError,
    load_strictly,
    read_checkpoint,
    write_atomically,
    write_weights,
)
from twostage.engine.trainer import Trainer


def content(value: float = 1.0) -> dict[str, Any]:
    return {"model": {"weight": torch.full((2,), value)}, "iteration": int(value)}


def test_names_and_last_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path)
    assert checkpoints.load_newest() is None
    assert checkpoints.save(content(), 4999).name == "model_0004999.pth"
    assert (tmp_path / "last_checkpoint").read_text() == "model_0004999.pth"
    assert checkpoints.save(content(2.0), None).name == "model_final.pth"
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    found = checkpoints.load_newest()
    assert found is not None
    assert found[0].name == "model_final.pth"
    assert found[1]["model"]["weight"].tolist() == [2.0, 2.0]


def test_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, keep=2)
    for number, iteration in enumerate((900, 1, 3, 5)):  # 900: left by an earlier, longer run
        path = checkpoints.save(content(), iteration)
        os.utime(path, ns=(number * 10**9, number * 10**9))
    checkpoints.save(content(), None)
    left = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert left == ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]


def test_damaged_newest_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(content(1.0), 1)
    newest = checkpoints.save(content(3.0), 3)
    newest.write_bytes(newest.read_bytes()[:200])
    found = checkpoints.load_newest()
    assert found is not None
    assert found[0].name == "model_0000001.pth"
    assert "model_0000003.pth is damaged" in caplog.text
    assert "Falling back" in caplog.text
    found[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged"):
        checkpoints.load_newest()


def test_missing_last_checkpoint_file(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(content(1.0), 1)
    checkpoints.save(content(3.0), 3)
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")  # somebody deleted that one
    found = checkpoints.load_newest()
    assert found is not None
    assert found[0].name == "model_0000003.pth"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_killed_during_save(tmp_path: Path) -> None:
    """A process that dies half-way through a save leaves the checkpoint before it, which the run resumes."""
    short, config = toy_config(tmp_path, "solver.max_iter=2"), toy_config(tmp_path, "solver.max_iter=4")
    final = Trainer(ToyTask(short.solver), make_batches(short), short).run()
    before = final.read_bytes()
    script = str(Path(__file__).with_name("toy_task.py"))
    words = [sys.executable, script, str(tmp_path), "solver.max_iter=4", "--resume", "--die-in-save"]
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == 9
    assert final.read_bytes() == before
    assert list(tmp_path.glob(".*.part")), "the half file lies beside, under another name"
    Trainer(ToyTask(config.solver), make_batches(config), config).run(resume=True)
    assert read_checkpoint(final)["iteration"] == 3
    assert not list(tmp_path.glob(".*.part"))


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("this must never run",)


def test_refuses_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": {}, "extra": _Evil()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain data, which is refused"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(_Evil(), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        read_checkpoint(path)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("stored", [{"weights": {}}, [1, 2], {"model": 3}])
def test_refuses_what_is_no_checkpoint(tmp_path: Path, stored: Any) -> None:
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="expected an entry 'model'"):
        read_checkpoint(tmp_path / "x.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*none\.pth"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_weights_to_share(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(True)}
    write_weights(tmp_path / "w.safetensors", tensors, {"vocabulary": {"names": [["cat", "Katze ä"]]}})
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert read["vocabulary"] == {"names": [["cat", "Katze ä"]]}
    assert torch.equal(read["model"]["a"], tensors["a"])
    assert bool(read["model"]["b"])


def test_strict_loading_lists_by_prefix() -> None:
    module = nn.ModuleDict(
        {"backbone": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "head": nn.Linear(3, 4)}
    )
    state = dict(module.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    given = {name: tensor + 1 for name, tensor in state.items() if not name.startswith("backbone.1")}
    given |= {"head.weight": torch.zeros(5, 3), "old.head.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, given, "some.pth")
    told = str(caught.value)
    assert told.startswith("some.pth does not fit the model:")
    assert "missing: backbone.1.* (2, first backbone.1.bias)" in told
    assert "unexpected: old.head.bias" in told
    assert "another shape: head.weight: expected (4, 3), got (5, 3)" in told
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before), "nothing was touched"


def test_strict_loading_with_named_exemptions() -> None:
    module = nn.Linear(2, 2)
    load_strictly(
        module, {"weight": torch.ones(2, 2), "clip.x": torch.ones(1)}, "w", exempt=["clip.", "bias"]
    )
    assert torch.equal(module.weight.detach(), torch.ones(2, 2))
    load_strictly(module, {"weight": torch.zeros(2, 2).half(), "bias": torch.zeros(2).half()}, "w")
    assert module.weight.dtype == torch.float32, "half-precision files fill full-precision networks"
