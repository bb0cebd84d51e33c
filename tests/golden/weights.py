"""Make the weights behind the golden numbers: a complete state dict from names alone.

Every tensor is a pure function of (salt, name, shape): numpy's PCG64, seeded with the
sha256 of "salt|name", gives raw bits; 24-bit integers are cut from them and scaled by one
float32 multiplication. Nothing rests on a library's random distributions, on the order
of the calls, or on a transcendental function, so the values are the same bit for bit on
every machine and numpy version. `python weights.py` prints digests to compare with
`weights_sha256.json`.

    state = state_dict("r50")                     # or "r101c"; numpy float32 arrays
    state = state_dict("r101c", learned=True)     # with prompt vectors

The values are noise with healthy scales: activations of order one through the whole
network, masks that are neither empty nor full, class scores that are not one-hot. Rows of
weights that read rectified inputs are centred (zero sum), otherwise random networks
answer every pixel alike.
"""

import hashlib
import json

import numpy as np

HALF = 1 << 23  # the integers lie in [-HALF, HALF)
UNIT = float(np.sqrt(3.0)) / HALF  # integer -> uniform number of variance one
FLAT = 1.0 / HALF  # integer -> uniform number in [-1, 1)

BLOCKS = {"r50": (3, 4, 6, 3), "r101c": (3, 4, 23, 3)}
QUERIES, WIDTH, FEED_FORWARD, DECODER_LAYERS, JOINT = 100, 256, 2048, 6, 512
START, END, FULL_STOP, PAD = 49406, 49407, 269, 0  # CLIP's token ids


def integers(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """int64 array of `shape`, uniform in [-2**23, 2**23), a function of salt and name."""
    count = int(np.prod(shape, dtype=np.int64))
    seed = int.from_bytes(hashlib.sha256(f"{salt}|{name}".encode()).digest(), "big")
    raw = np.random.PCG64(seed).random_raw((count + 1) // 2).astype("<u8")
    return (raw.view("<u4")[:count] >> 8).astype(np.int64).reshape(shape) - HALF


def scaled(values: np.ndarray, scale: float) -> np.ndarray:
    """Integers below 2**24 times a float32 number: one rounding, the same everywhere."""
    return values.astype(np.float32) * np.float32(scale)


def tensor(name: str, shape: tuple[int, ...], role: tuple, salt: str = "") -> np.ndarray:
    """float32 array for one parameter.

    role: ("noise", std)       uniform noise of that standard deviation
          ("fan", gain)        noise of std gain/sqrt(fan_in), fan_in = size of one row
          ("centred", gain)    as "fan", then every row is shifted to zero sum
          ("columns", gain)    as "fan", for matrices used as x @ W: fan_in = rows
          ("packed", g1, g2)   attention input matrix: gain g1 for the query and key
                               thirds, g2 for the value third
          ("around", c, r)     c + uniform in [-r, r)
          ("value", array)     the given numbers
    """
    kind, *numbers = role
    if kind == "value":
        return np.asarray(numbers[0], dtype=np.float32).reshape(shape)
    ints = integers(name, shape, salt)
    if kind == "noise":
        return scaled(ints, numbers[0] * UNIT)
    if kind == "around":
        return np.float32(numbers[0]) + scaled(ints, numbers[1] * FLAT)
    if kind == "columns":
        return scaled(ints, numbers[0] * UNIT / np.sqrt(float(shape[0])))
    fan_in = int(np.prod(shape[1:], dtype=np.int64))
    if kind == "packed":
        third = shape[0] // 3
        sharp = scaled(ints[: 2 * third], numbers[0] * UNIT / np.sqrt(float(fan_in)))
        value = scaled(ints[2 * third :], numbers[1] * UNIT / np.sqrt(float(fan_in)))
        return np.concatenate([sharp, value])
    if kind == "centred":
        rows = ints.reshape(shape[0], -1)
        ints = (rows - rows.sum(axis=1, keepdims=True) // fan_in).reshape(shape)
    elif kind != "fan":
        raise ValueError(f"unknown role {role!r}")
    return scaled(ints, numbers[0] * UNIT / np.sqrt(float(fan_in)))


HE = float(np.sqrt(2.0))


class _Plan(dict):
    """name -> (shape, role)"""

    def weight(self, name, shape, gain, centred=True):
        self[name] = (shape, ("centred" if centred else "fan", gain))

    def linear(self, name, inputs, outputs, gain, centred=False, bias=0.05):
        self.weight(f"{name}.weight", (outputs, inputs), gain, centred)
        self[f"{name}.bias"] = ((outputs,), ("noise", bias))

    def norm(self, name, channels, scale=1.0, bias=0.1):
        self[f"{name}.weight"] = ((channels,), ("around", scale, 0.2 * scale))
        self[f"{name}.bias"] = ((channels,), ("noise", bias))

    def frozen_norm(self, name, channels, scale=1.0):
        self.norm(name, channels, scale)
        self[f"{name}.running_mean"] = ((channels,), ("noise", 0.1))
        self[f"{name}.running_var"] = ((channels,), ("around", 1.0, 0.2))

    def convolution(self, name, inputs, outputs, size, gain=HE, scale=1.0, centred=True):
        self.weight(f"{name}.weight", (outputs, inputs, size, size), gain, centred)
        self.frozen_norm(f"{name}.norm", outputs, scale)


def _backbone(plan: _Plan, depth: str) -> None:
    if depth == "r50":
        plan.convolution("backbone.stem.conv1", 3, 64, 7, centred=False)
        inputs = 64
    else:
        plan.convolution("backbone.stem.conv1", 3, 64, 3, centred=False)
        plan.convolution("backbone.stem.conv2", 64, 64, 3)
        plan.convolution("backbone.stem.conv3", 64, 128, 3)
        inputs = 128
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner, outputs = 64 << stage, 256 << stage
        for block in range(blocks):
            name = f"backbone.res{stage + 2}.{block}"
            if block == 0:
                plan.convolution(f"{name}.shortcut", inputs, outputs, 1)
            plan.convolution(f"{name}.conv1", inputs, inner, 1)
            plan.convolution(f"{name}.conv2", inner, inner, 3)
            plan.convolution(f"{name}.conv3", inner, outputs, 1, scale=0.4)
            inputs = outputs


def _pixel_decoder(plan: _Plan) -> None:
    name = "sem_seg_head.pixel_decoder"
    for level, channels in enumerate((256, 512, 1024), start=1):
        plan.weight(f"{name}.adapter_{level}.weight", (WIDTH, channels, 1, 1), 1.0)
        plan.norm(f"{name}.adapter_{level}.norm", WIDTH, scale=(0.06, 0.12, 0.25)[level - 1], bias=0.02)
    for level in range(1, 5):
        channels = 2048 if level == 4 else WIDTH
        plan.weight(f"{name}.layer_{level}.weight", (WIDTH, channels, 3, 3), 1.0)
        plan.norm(f"{name}.layer_{level}.norm", WIDTH)
    plan.weight(f"{name}.mask_features.weight", (WIDTH, WIDTH, 3, 3), HE)
    plan[f"{name}.mask_features.bias"] = ((WIDTH,), ("around", 0.5, 0.1))


def _predictor(plan: _Plan) -> None:
    name = "sem_seg_head.predictor"
    plan.weight(f"{name}.input_proj.weight", (WIDTH, 2048, 1, 1), 1.0)
    plan[f"{name}.input_proj.bias"] = ((WIDTH,), ("noise", 0.05))
    plan[f"{name}.query_embed.weight"] = ((QUERIES, WIDTH), ("noise", 1.0))
    for layer in range(DECODER_LAYERS):
        block = f"{name}.transformer.decoder.layers.{layer}"
        for attention in ("self_attn", "multihead_attn"):
            plan[f"{block}.{attention}.in_proj_weight"] = ((3 * WIDTH, WIDTH), ("packed", 1.6, 1.0))
            plan[f"{block}.{attention}.in_proj_bias"] = ((3 * WIDTH,), ("noise", 0.05))
            plan.linear(
                f"{block}.{attention}.out_proj", WIDTH, WIDTH, 1.0 if attention == "self_attn" else 3.0
            )
        plan.linear(f"{block}.linear1", WIDTH, FEED_FORWARD, 1.0)
        plan.linear(f"{block}.linear2", FEED_FORWARD, WIDTH, 1.0, centred=True)
        for index in (1, 2, 3):
            plan.norm(f"{block}.norm{index}", WIDTH)
    plan.norm(f"{name}.transformer.decoder.norm", WIDTH)
    plan.linear(f"{name}.mask_embed.layers.0", WIDTH, WIDTH, HE)
    plan.linear(f"{name}.mask_embed.layers.1", WIDTH, WIDTH, HE, centred=True)
    plan.weight(f"{name}.mask_embed.layers.2.weight", (WIDTH, WIDTH), 0.25)
    plan[f"{name}.mask_embed.layers.2.bias"] = ((WIDTH,), ("around", -0.045, 0.02))
    plan.linear(f"{name}.class_embed.layers.0", WIDTH, 1024, HE)
    plan.linear(f"{name}.class_embed.layers.1", 1024, JOINT, 1.0, centred=True)


def _clip_tower(plan: _Plan, name: str, width: int, layers: int = 12) -> None:
    for layer in range(layers):
        block = f"{name}.resblocks.{layer}"
        plan[f"{block}.attn.in_proj_weight"] = ((3 * width, width), ("packed", 1.5, 1.0))
        plan[f"{block}.attn.in_proj_bias"] = ((3 * width,), ("noise", 0.02))
        plan.linear(f"{block}.attn.out_proj", width, width, 2.5)
        plan.norm(f"{block}.ln_1", width)
        plan.linear(f"{block}.mlp.c_fc", width, 4 * width, 1.0)
        plan.linear(f"{block}.mlp.c_proj", 4 * width, width, 1.0, centred=True)
        plan.norm(f"{block}.ln_2", width)


def _clip(plan: _Plan, name: str = "clip_adapter") -> None:
    model = f"{name}.clip_model"
    plan[f"{name}.non_object_embedding"] = ((1, JOINT), ("noise", 0.0442))
    plan[f"{name}.pixel_mean"] = (
        (1, 3, 1, 1),
        ("value", np.float32([0.48145466, 0.4578275, 0.40821073]) * np.float32(255)),
    )
    plan[f"{name}.pixel_std"] = (
        (1, 3, 1, 1),
        ("value", np.float32([0.26862954, 0.26130258, 0.27577711]) * np.float32(255)),
    )
    plan[f"{model}.positional_embedding"] = ((77, 512), ("noise", 0.3))
    plan[f"{model}.text_projection"] = ((512, JOINT), ("columns", 1.0))
    plan[f"{model}.logit_scale"] = ((), ("value", 4.6051702))
    plan[f"{model}.visual.class_embedding"] = ((768,), ("noise", 0.3))
    plan[f"{model}.visual.positional_embedding"] = ((197, 768), ("noise", 0.3))
    plan[f"{model}.visual.proj"] = ((768, JOINT), ("columns", 1.0))
    plan.weight(f"{model}.visual.conv1.weight", (768, 3, 16, 16), 1.0, centred=False)
    plan.norm(f"{model}.visual.ln_pre", 768)
    _clip_tower(plan, f"{model}.visual.transformer", 768)
    plan.norm(f"{model}.visual.ln_post", 768)
    _clip_tower(plan, f"{model}.transformer", 512)
    plan[f"{model}.token_embedding.weight"] = ((49408, 512), ("noise", 1.0))
    plan.norm(f"{model}.ln_final", 512)


def plan(depth: str, learned: bool = False, train_classes: int = 156) -> dict:
    """name -> (shape, role) of every tensor in the checkpoint.

    depth: "r50" or "r101c"; learned: with prompt vectors; train_classes: K of the loss.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {sorted(BLOCKS)}, got {depth!r}")
    made = _Plan()
    _backbone(made, depth)
    _pixel_decoder(made)
    _predictor(made)
    made["criterion.empty_weight"] = ((train_classes + 1,), ("value", [1.0] * train_classes + [0.1]))
    _clip(made)
    if learned:
        made["clip_adapter.prompt_learner.prefix_prompt"] = ((16, 512), ("noise", 0.5))
    return made


def state_dict(depth: str, learned: bool = False, salt: str = "", train_classes: int = 156) -> dict:
    """name -> float32 numpy array, all tensors of the checkpoint."""
    state = {
        name: tensor(name, shape, role, salt)
        for name, (shape, role) in plan(depth, learned, train_classes).items()
    }
    if learned:
        table = state["clip_adapter.clip_model.token_embedding.weight"]
        for signal, token in (("start", START), ("dot", FULL_STOP), ("end", END), ("pad", PAD)):
            state[f"clip_adapter.prompt_learner.{signal}_signal"] = table[token : token + 1].copy()
    return state


def digests(state: dict) -> dict:
    """sha256 of the little-endian float32 bytes of each tensor, and of all in name order."""
    single, total = {}, hashlib.sha256()
    for name in sorted(state):
        data = np.ascontiguousarray(state[name], dtype="<f4").tobytes()
        single[name] = hashlib.sha256(data).hexdigest()
        total.update(name.encode() + data)
    return {"all": total.hexdigest(), "tensors": single}


if __name__ == "__main__":
    for key in ("r50", "r101c"):
        for learned in (False, True):
            print(
                json.dumps(
                    {"depth": key, "learned": learned, "sha256": digests(state_dict(key, learned))["all"]}
                )
            )
