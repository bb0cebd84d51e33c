"""Train the miniature CLIP that ships with the package.

    python tools/train_mini_clip.py tokenizer
    python tools/train_mini_clip.py train twostage-mini-rn  --steps 8000 --seed 0 --out output/mini-rn
    python tools/train_mini_clip.py train twostage-mini-vit --steps 12000 --seed 0 --out output/mini-vit

`tokenizer` writes the small byte-pair vocabulary: CLIP's own merges, restricted to those that the words of
the templates and of the embedded world need, so these words split as they do in CLIP. `train` writes
OUT/NAME.safetensors (fp16) and OUT/progress.jsonl, and prints zero-shot accuracy on masked crops of scenes
that training never draws.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import default_bpe, get_pairs
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mini_clip_pairs import Pair, PairStream, colour_names, evaluation_crops

import twostage.clip
from twostage.clip import mini
from twostage.data.shapes.classes import CLASSES, UNSEEN

VALIDATION_SEED = 900_001
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


def all_templates() -> list[str]:
    """Every template of the package's sets."""
    folder = Path(twostage.clip.__file__).parent / "templates"
    return [
        line for path in sorted(folder.glob("*.txt")) for line in path.read_text("utf-8").splitlines() if line
    ]


def write_tokenizer() -> None:
    """Write the merges that the words need in CLIP's order, with its header and no newline at the end."""
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")
    ranks = {tuple(line.split()): position for position, line in enumerate(lines[1 : 49152 - 256 - 2 + 1])}
    text = " ".join([*all_templates(), *CLASSES, *colour_names(), "and on other background"]).lower()
    used: set[tuple[str, str]] = set()
    for word in set(re.findall(r"[a-z]+|[^\sa-z{}]+", text)):
        used |= _merges_of(word, ranks)
    kept = sorted(used, key=ranks.__getitem__)
    content = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in kept)])
    with open(mini.MERGES, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
        file.write(content.encode("utf-8"))
    print(f"{len(kept)} merges, {512 + len(kept) + 2} tokens -> {mini.MERGES}")


def _merges_of(word: str, ranks: dict[tuple[str, ...], int]) -> set[tuple[str, str]]:
    parts, used = (*word[:-1], word[-1] + "</w>"), set()
    while len(parts) > 1:
        best = min(get_pairs(parts), key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            break
        used.add(best)
        merged, position = [], 0
        while position < len(parts):
            if parts[position : position + 2] == best:
                merged.append("".join(best))
                position += 2
            else:
                merged.append(parts[position])
                position += 1
        parts = tuple(merged)
    return used


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """CLIP's symmetric loss where several captions may fit a picture: match (B, B) bool, row = picture."""
    logits = scale * image @ text.T
    target = match.float()
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def matches(pairs: list[Pair]) -> Tensor:
    """(B, B) bool: caption j is true of picture i and leaves out none of its concepts."""
    rows = [[p.concepts == q.concepts and (not q.told or q.told == p.colour) for q in pairs] for p in pairs]
    return torch.tensor(rows)


def pixels(pictures: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 in CLIP's normalisation."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.inference_mode()
def accuracy(model: nn.Module, tokenizer, crops: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Top-1 accuracy on masked crops, percent: "a sculpture of a {}.", all twenty names competing."""
    model.eval()
    text = F.normalize(
        model.encode_text(tokenizer([f"a sculpture of a {name}." for name in CLASSES])), dim=-1
    )
    guesses = []
    for start in range(0, len(crops), 128):
        image = model.encode_image(pixels(crops[start : start + 128]))
        guesses.append((image @ text.T).argmax(1))
    hit = torch.cat(guesses).numpy() == classes
    unseen = np.isin(classes, [CLASSES.index(name) for name in UNSEEN])
    per_class = {f"acc/{name}": 100 * hit[classes == i].mean() for i, name in enumerate(CLASSES)}
    return {
        "all": 100 * hit.mean(),
        "seen": 100 * hit[~unseen].mean(),
        "unseen": 100 * hit[unseen].mean(),
        **per_class,
    }


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, then linear to zero over the last 40 %."""
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.4 * steps))


def build(name: str) -> tuple[nn.Module, object]:
    """A randomly initialised open_clip model of the miniature family and its tokenizer."""
    open_clip.add_model_config(mini.model_config(name))
    return open_clip.create_model(name), open_clip.get_tokenizer(name)


def train(arguments: argparse.Namespace) -> None:
    """The loop: pairs, loss, AdamW, a running average of the weights, accuracy now and then."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = build(arguments.name)
    average = copy.deepcopy(model)
    size = (
        model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
    )
    stream = PairStream(arguments.seed, size, all_templates())
    crops, classes = evaluation_crops(VALIDATION_SEED, 120, size)
    decay = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    started = time.time()
    last = min(arguments.steps, arguments.stop_after or arguments.steps)
    for step in range(last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.lr)
        loss = _step(model, tokenizer, optimizer, stream.batch(arguments.batch), arguments.bf16)
        if not math.isfinite(loss):
            raise SystemExit(f"The loss is {loss} at step {step}: lower --lr.")
        _follow(average, model, min(0.998, step / (step + 20)))
        if (step + 1) % arguments.every == 0 or step + 1 == last:
            scores = accuracy(average, tokenizer, crops, classes)
            report = {"step": step + 1, "loss": loss, "seconds": time.time() - started, **scores}
            with open(arguments.out / "progress.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({k: round(float(v), 3) for k, v in report.items()}) + "\n")
            print(" ".join(f"{key} {float(report[key]):.2f}" for key in list(report)[:6]), flush=True)
            save(average, arguments.out / f"{arguments.name}.safetensors")


def _step(
    model: nn.Module, tokenizer, optimizer: torch.optim.Optimizer, pairs: list[Pair], bf16: bool
) -> float:
    model.train()
    captions = sorted({pair.caption for pair in pairs})
    row_of = {caption: row for row, caption in enumerate(captions)}
    pictures = pixels(np.stack([pair.picture for pair in pairs]))
    # The fused attention's backward pass takes half of a step on a CPU; plain products are twice as fast.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
        text = model.encode_text(tokenizer(captions))
        image = model.encode_image(pictures)
    text = F.normalize(text.float(), dim=-1)[[row_of[pair.caption] for pair in pairs]]
    image = F.normalize(image.float(), dim=-1)
    loss = contrastive_loss(image, text, model.logit_scale.exp(), matches(pairs))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Exponential moving average of the weights; buffers such as BatchNorm statistics are copied."""
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - keep)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def save(model: nn.Module, path: Path) -> None:
    """The state dict as fp16 safetensors, integers as they are, replaced at once."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    temporary = path.with_suffix(".tmp")
    save_file(state, str(temporary))
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer")
    trainer = commands.add_parser("train")
    trainer.add_argument("name", choices=mini.NAMES)
    trainer.add_argument("--steps", type=int, default=8000)
    trainer.add_argument("--stop-after", type=int, help="end early, before the rate has fallen to zero")
    trainer.add_argument("--batch", type=int, default=128)
    trainer.add_argument("--lr", type=float, default=1e-3)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--every", type=int, default=500, help="steps between two measurements")
    trainer.add_argument("--threads", type=int, default=torch.get_num_threads())
    trainer.add_argument("--bf16", action="store_true", help="bf16 autocast; pays on processors with AMX")
    trainer.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_tokenizer() if arguments.command == "tokenizer" else train(arguments)


if __name__ == "__main__":
    main()
