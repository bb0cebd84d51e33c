"""The miniature CLIP that ships with the package: two open_clip models that know the embedded world's words.

open_clip finds a model by a JSON file whose tokenizer path must be absolute (a wrong one silently means the
49,408-token tokenizer), so `model_config` writes the JSON for this machine and the caller registers it.
"""

from __future__ import annotations

import atexit
import gzip
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

NAMES = ("twostage-mini-rn", "twostage-mini-vit")
_HERE = Path(__file__).resolve().parent
MERGES = _HERE / "merges.txt.gz"


def weights_path(name: str) -> Path:
    """The fp16 safetensors file that ships for one of NAMES."""
    return _HERE / f"{name}.safetensors"


def vocabulary_size() -> int:
    """Tokens of the small tokenizer: bytes with and without word end, the merges, start and end of text."""
    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")[1:]
    return 512 + len(merges) + 2


@cache
def model_config(name: str) -> Path:
    """A JSON file that open_clip.add_model_config understands, with this machine's path to the tokenizer.

    Raises:
        KeyError: not one of NAMES.
    """
    if name not in NAMES:
        raise KeyError(name)
    config = json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))
    config["text_cfg"]["vocab_size"] = vocabulary_size()
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": str(MERGES)}
    folder = tempfile.mkdtemp(prefix="twostage-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / f"{name}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
