"""The model that comes as a Python package, whole."""

from pathlib import Path

import pytest

from drgrpo.models import inspect_model, resolve_model


@pytest.mark.engine
def test_the_packaged_model_converts_to_float32_safetensors_that_transformers_loads(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model("smollm2", revision="main", cache_dir=tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.dtype == torch.float32 and model.config.rms_norm_eps == 1e-5
    facts = [inspect_model(name, revision="main", cache_dir=tmp_path) for name in (str(path), "smollm2")]
    assert facts[0].context_length == facts[1].context_length
    assert facts[0].num_parameters == 134_515_008 <= facts[1].num_parameters <= 1.2 * 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    token = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(token) == " Paris"
