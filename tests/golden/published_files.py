"""Published checkpoints of the real names and shapes that weigh nothing: each tensor is one number, repeated
without memory, so that a mixed-up name shows as a wrong number.
"""

import torch
import weights
from torch import Tensor

SIGNALS = ("start", "dot", "end", "pad")


def light_state(
    depth: str, learned: bool = False, train_classes: int = 156, separate: bool = False
) -> dict[str, Tensor]:
    """Name -> tensor of a whole checkpoint. separate: with stage two's own adapter, which alone has prompts."""
    plan = weights.plan(depth, learned or separate, train_classes)
    state = {
        name: torch.from_numpy(weights.tensor(name, shape, role))
        if role[0] == "value"
        else torch.tensor(float(number)).expand(shape)
        for number, (name, (shape, role)) in enumerate(plan.items(), start=1)
    }
    if learned or separate:
        rows = state["clip_adapter.clip_model.token_embedding.weight"][:1]
        state |= {f"clip_adapter.prompt_learner.{signal}_signal": rows for signal in SIGNALS}
    if separate:
        adapter = {name: tensor for name, tensor in state.items() if name.startswith("clip_adapter.")}
        state = {name: tensor for name, tensor in state.items() if "prompt_learner" not in name}
        state |= {f"_region_{name}": tensor for name, tensor in adapter.items()}
    return state
