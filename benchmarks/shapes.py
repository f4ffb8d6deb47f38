"""Random models of a given shape: speed does not depend on what the weights know.

python -m benchmarks.shapes qwen2.5-1.5b DIRECTORY
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from drgrpo.models import resolve_model
from drgrpo.settings import load_settings

_QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": _QWEN
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "qwen2.5-3b": _QWEN
    | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
    "tiny": {
        "model_type": "qwen2",
        "vocab_size": 49152,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
}


def build_model(shape: str, directory: Path, tokenizer: Path) -> Path:
    """Write a random bfloat16 model of `shape` with the tokenizer found in `tokenizer`, unless it is there."""
    if (directory / "config.json").exists():
        return directory
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(
        settings.pop("model_type"), bos_token_id=1, eos_token_id=2, pad_token_id=2, **settings
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    partial = directory.with_name(directory.name + ".partial")
    model.cpu().save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copy2(tokenizer / name, partial / name)
    partial.rename(directory)
    return directory


def place_model(name: str, directory: Path) -> Path:
    """Put a model into `directory`: a shape of this module, or one that a run can name, such as `smollm2`."""
    cache = load_settings().cache_dir
    if name in SHAPES:
        return build_model(name, directory, resolve_model("smollm2", revision="main", cache_dir=cache))
    if not directory.exists():
        directory.symlink_to(resolve_model(name, revision="main", cache_dir=cache))
    return directory


if __name__ == "__main__":
    print(place_model(sys.argv[1], Path(sys.argv[2])))
