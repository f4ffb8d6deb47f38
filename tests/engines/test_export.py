"""The exported policy as others load it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drgrpo.trainer.batch import Sample
from tests.engines import reference
from tests.engines.conftest import TrainerRanks, environment, make_config
from tests.engines.process import EngineProcess
from tests.engines.samples import random_samples

pytestmark = pytest.mark.engine

PROBES = [(list(sample.prompt_ids), list(sample.completion_ids)) for sample in random_samples(99)]


@pytest.fixture(
    scope="module", params=[(1, "dtype"), (2, "torch_dtype")], ids=["one rank", "two ranks and the old name of dtype"]
)
def ranks(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainerRanks]:
    """A trained policy on one rank, then on two; it is trained in float32, and was bfloat16 before."""
    world_size, key = request.param
    config = make_config(half_model(tiny_model, tmp_path_factory.mktemp("half") / "model", key), {"optimizer.lr": 1e-2})
    started = TrainerRanks("tests.engines.rank_worker.RankWorker", config, world_size=world_size)
    started.call("train", random_samples(), 0)
    yield started
    started.close()


def half_model(source: Path, path: Path, key: str) -> Path:
    """The model at `source` in bfloat16, as its config says under `key`."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, path)
    AutoModelForCausalLM.from_pretrained(source, dtype="bfloat16").save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (path / "config.json").write_text(json.dumps(config | {key: "bfloat16"}))
    return path


@pytest.fixture(scope="module")
def exported(ranks: TrainerRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the exported policy."""
    return Path(ranks.call("export", str(tmp_path_factory.mktemp("export") / "policy")))


def test_transformers_loads_the_very_weights(ranks: TrainerRanks, exported: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, initial = AutoModelForCausalLM.from_pretrained(exported), reference.load_model(tiny_model)
    config = json.loads((exported / "config.json").read_text())
    assert [config[key] for key in ("dtype", "torch_dtype") if key in config] == ["float32"]
    trained = ranks.call("whole_weights")
    loaded = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert set(loaded) == set(trained)
    assert all(np.array_equal(value, trained[name]) for name, value in loaded.items())
    assert all(not np.array_equal(value, dict(initial.named_parameters())[n].detach()) for n, value in loaded.items())


def test_the_exported_policy_scores_as_the_trainer_does(ranks: TrainerRanks, exported: Path) -> None:
    model = reference.load_model(exported)
    for (prompt, completion), row in zip(PROBES, ranks.call("score", PROBES), strict=True):
        expected = reference.token_logprobs(model, Sample(0, prompt, completion), 1.0)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_tokenizer_and_chat_template_come_along(exported: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    ours, initial = (AutoTokenizer.from_pretrained(path) for path in (exported, tiny_model))
    messages = [{"role": "user", "content": "What is 12 + 34?"}]
    assert ours.encode("The answer is 46.") == initial.encode("The answer is 46.")
    assert ours.apply_chat_template(messages, tokenize=False) == initial.apply_chat_template(messages, tokenize=False)
    assert GenerationConfig.from_pretrained(exported).eos_token_id == 2
    assert not list(exported.parent.glob("*.partial"))


def test_vllm_loads_the_export_and_agrees_with_the_trainer(ranks: TrainerRanks, exported: Path) -> None:
    if len(ranks.processes) == 2:
        pytest.skip("the directory has the same files whatever the number of ranks")
    config = make_config(exported)
    sampler = EngineProcess(
        "tests.engines.sampler_worker.SamplerWorker", config, exported, environment=environment(config, "rollout")
    )
    try:
        theirs, ours = (np.concatenate(engine.call("score", PROBES)) for engine in (sampler, ranks))
    finally:
        sampler.close()
    print(f"mean |Δlogp| {np.abs(theirs - ours).mean():.2e}")
    assert np.abs(theirs - ours).mean() <= 1e-4


def test_an_interrupted_export_leaves_no_directory_and_can_be_repeated(ranks: TrainerRanks, tmp_path: Path) -> None:
    final = tmp_path / "policy"
    if len(ranks.processes) == 1:
        with pytest.raises(OSError, match="no space left"):
            ranks.call("export_with_full_disk", str(final))
        assert not final.exists()
    ranks.call("export", str(final))
    assert reference.load_model(final)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
