"""A network with the recorded weights, and the recorded text features made again by CLIP's text tower."""

import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, TextTransformer

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))

from stage_one import generated, golden_json, load_network

from twostage.maskformer.network import MaskFormer
from twostage.types import TextBank


@pytest.fixture(scope="session")
def r50() -> MaskFormer:
    return load_network("r50")


@pytest.fixture(scope="session")
def tolerances() -> dict[str, float]:
    return golden_json("tolerances")


@pytest.fixture(scope="session")
def coco171() -> TextBank:
    """Text features of COCO-Stuff's 171 names in "a sculpture of a {}.", by open_clip's own text tower."""
    prompts = [f"a sculpture of a {name}." for name in golden_json("r50_single_coco171")["classes"]]
    tokens = open_clip.get_tokenizer("ViT-B-16")(prompts)
    # The tower is causal: nothing behind the end token can change the feature.
    length = int((tokens != 0).sum(dim=1).max())
    prefix = "clip_adapter.clip_model."
    own = ("positional_embedding", "text_projection", "transformer.", "token_embedding.", "ln_final.")
    made = generated("r50", lambda name: name.startswith(tuple(prefix + part for part in own)))
    state = {name.removeprefix(prefix): value for name, value in made.items()}
    state["positional_embedding"] = state["positional_embedding"][:length]
    tower = TextTransformer(
        context_length=length, width=512, heads=8, layers=12, output_dim=512, act_layer=QuickGELU
    ).eval()
    tower.load_state_dict(state, strict=True)
    with torch.no_grad():
        features = torch.nn.functional.normalize(tower(tokens[:, :length]), dim=-1)
    return TextBank(features, torch.arange(len(prompts)), len(prompts))
