"""Options of the optimisation, with the paper's values for stage one as default."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class SolverConfig:
    """Optimisation."""

    ims_per_batch: int = option(
        32, "Photos in one update, over all processes and accumulation steps together", least=1
    )
    max_iter: int = option(60000, "Number of updates", least=1)
    optimizer: str = option("adamw", "What moves the weights", choices=("adamw", "sgd"))
    momentum: float = option(0.9, "Momentum of SGD", least=0, most=1)
    base_lr: float = option(1e-4, "Learning rate at the start", above=0)
    backbone_multiplier: float = option(0.1, "Factor on the learning rate of the backbone", least=0)
    weight_decay: float = option(
        1e-4, "Weight decay; decoupled in AdamW, added to the gradient in SGD", least=0
    )
    weight_decay_norm: float = option(0.0, "The same for normalisation layers", least=0)
    weight_decay_embed: float = option(0.0, "The same for embedding tables such as the queries", least=0)
    schedule: str = option("poly", "How the learning rate falls to zero", choices=("poly", "cosine"))
    poly_power: float = option(0.9, "poly falls as (1 - iteration / MAX_ITER) ** POLY_POWER", least=0)
    warmup_iters: int = option(0, "Updates in which the rate rises from WARMUP_FACTOR", least=0)
    warmup_method: str = option("linear", "How it rises", choices=("linear", "constant"))
    warmup_factor: float = option(0.001, "First factor of the warm-up", least=0, most=1)
    clip_gradients: float = option(
        0.01, "Largest L2 norm of all gradients together; 0 does not clip", least=0
    )
    accumulation: int = option(1, "Parts in which a process works through its share of a batch", least=1)
    amp: str = option(
        "off",
        "Half precision in training; fp16 needs CUDA, auto takes bf16 where the hardware is made for it",
        choices=("off", "auto", "bf16", "fp16"),
    )
    checkpoint_period: int = option(5000, "Updates between checkpoints; 0 keeps only the final one", least=0)
    checkpoints_to_keep: int = option(3, "Newest checkpoints kept beside the final one; 0 keeps all", least=0)
    log_period: int = option(20, "Updates between progress lines", least=1)
