"""Deterministic random weights of a small CLIP with OpenAI state-dict names (numpy only).

state_dict(salt) -> {name: float32 array}.  Every value is exactly representable in float16, so a
loader that stores half precision and converts back loses nothing.

Vision tower: 12 blocks, width 256, 4 heads of width 64, patch 16, native grid 14x14 (224 px),
joint width 64, QuickGELU, LayerNorm eps 1e-5.  Text tower: 1 block, width 64, 1 head, 77 tokens.
"""

import hashlib

import numpy as np

WIDTH, LAYERS, PATCH, GRID, EMBED, MLP = 256, 12, 16, 14, 64, 1024
TEXT_WIDTH, TEXT_LAYERS, VOCAB, CONTEXT = 64, 1, 128, 77
OUTLIERS = (5, 97, 181)  # residual channels with large, mostly data-independent values
QUIET = slice(192, 256)  # residual channels that the blocks hardly write: they keep the embedded patch
NOISY = 150  # residual channel that is large on a few tokens only
STRONG_ROW = 97  # row of mlp.c_proj.weight with by far the largest norm in blocks 7..11


def normal(name, shape, salt):
    """Standard normal array that depends on (salt + name) only."""
    seed = int.from_bytes(hashlib.sha256((salt + name).encode("utf-8")).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def tensor(name, shape, salt, std=1.0, mean=0.0):
    """float32 array N(mean, std^2), rounded to float16 precision."""
    return (mean + std * normal(name, shape, salt)).astype(np.float16).astype(np.float32)


def _layer_norm(out, prefix, width, salt):
    out[prefix + ".weight"] = tensor(prefix + ".weight", (width,), salt, 0.1, 1.0)
    out[prefix + ".bias"] = tensor(prefix + ".bias", (width,), salt, 0.05)


def _block(out, prefix, width, mlp, salt, qk_gain, v_gain, res_gain):
    _layer_norm(out, prefix + ".ln_1", width, salt)
    name = prefix + ".attn.in_proj_weight"
    weight = normal(name, (3 * width, width), salt) / np.sqrt(width)
    weight[: 2 * width] *= qk_gain
    weight[2 * width :] *= v_gain
    out[name] = weight.astype(np.float16).astype(np.float32)
    out[prefix + ".attn.in_proj_bias"] = tensor(prefix + ".attn.in_proj_bias", (3 * width,), salt, 0.1)
    out[prefix + ".attn.out_proj.weight"] = tensor(
        prefix + ".attn.out_proj.weight", (width, width), salt, res_gain / np.sqrt(width)
    )
    out[prefix + ".attn.out_proj.bias"] = tensor(prefix + ".attn.out_proj.bias", (width,), salt, 0.05)
    _layer_norm(out, prefix + ".ln_2", width, salt)
    out[prefix + ".mlp.c_fc.weight"] = tensor(
        prefix + ".mlp.c_fc.weight", (mlp, width), salt, 1 / np.sqrt(width)
    )
    out[prefix + ".mlp.c_fc.bias"] = tensor(prefix + ".mlp.c_fc.bias", (mlp,), salt, 0.1)
    out[prefix + ".mlp.c_proj.weight"] = tensor(
        prefix + ".mlp.c_proj.weight", (width, mlp), salt, res_gain / np.sqrt(mlp)
    )
    out[prefix + ".mlp.c_proj.bias"] = tensor(prefix + ".mlp.c_proj.bias", (width,), salt, 0.05)


def state_dict(salt):
    out = {}
    out["positional_embedding"] = tensor("positional_embedding", (CONTEXT, TEXT_WIDTH), salt, 0.1)
    out["text_projection"] = tensor("text_projection", (TEXT_WIDTH, EMBED), salt, TEXT_WIDTH**-0.5)
    out["logit_scale"] = np.array(np.float16(np.log(100.0)), dtype=np.float32)
    out["visual.class_embedding"] = tensor("visual.class_embedding", (WIDTH,), salt, 0.5)
    out["visual.positional_embedding"] = tensor(
        "visual.positional_embedding", (GRID * GRID + 1, WIDTH), salt, 0.3
    )
    out["visual.proj"] = tensor("visual.proj", (WIDTH, EMBED), salt, WIDTH**-0.5)
    out["visual.conv1.weight"] = tensor(
        "visual.conv1.weight", (WIDTH, 3, PATCH, PATCH), salt, 2.0 / np.sqrt(3 * PATCH * PATCH)
    )
    _layer_norm(out, "visual.ln_pre", WIDTH, salt)
    for channel, value in zip(OUTLIERS, (6.0, -4.0, 3.0)):
        out["visual.ln_pre.bias"][channel] = value
    for i in range(LAYERS):
        prefix = "visual.transformer.resblocks.%d" % i
        _block(out, prefix, WIDTH, MLP, salt, 1.7, 1.3, 0.6)
        for name in (
            ".attn.out_proj.weight",
            ".attn.out_proj.bias",
            ".mlp.c_proj.weight",
            ".mlp.c_proj.bias",
        ):
            out[prefix + name][QUIET] = (0.2 * out[prefix + name][QUIET]).astype(np.float16)
        if i == LAYERS - 1:  # values of the last block read mostly the quiet channels
            value = out[prefix + ".attn.in_proj_weight"][2 * WIDTH :]
            gain = np.full(WIDTH, 0.15)
            gain[QUIET] = 3.0
            value[:] = (value * gain).astype(np.float16)
        weight = out[prefix + ".mlp.c_proj.weight"]
        if i >= 7:
            weight[STRONG_ROW] = (weight[STRONG_ROW] * 6).astype(np.float16)
        if i in (4, 5, 6):
            weight[NOISY] = (weight[NOISY] * 3).astype(np.float16)
        if 2 <= i <= 9:
            for channel, value in zip(OUTLIERS, (1.0, -1.5, 0.75)):
                out[prefix + ".mlp.c_proj.bias"][channel] = value
    _layer_norm(out, "visual.ln_post", WIDTH, salt)
    for i in range(TEXT_LAYERS):
        _block(out, "transformer.resblocks.%d" % i, TEXT_WIDTH, 4 * TEXT_WIDTH, salt, 1.0, 1.0, 0.6)
    out["token_embedding.weight"] = tensor("token_embedding.weight", (VOCAB, TEXT_WIDTH), salt, 0.3)
    _layer_norm(out, "ln_final", TEXT_WIDTH, salt)
    return out


def fingerprint(state):
    """sha256 over names, shapes and float32 bytes; compare with the value in the README."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], dtype="<f4")
        digest.update(("%s %s" % (name, array.shape)).encode("utf-8"))
        digest.update(array.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print("a", fingerprint(state_dict("a")))
