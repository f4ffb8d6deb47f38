"""Memory, disk, devices and the output directory, before any engine starts."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.memory import (
    DEVICES,
    MEASURED,
    MEASURED_MODEL,
    MODELS,
    RESULTS,
    measured_peaks,
    rewritten,
    sampler_share,
)
from deployments.steps import load_deployment
from drgrpo.config import TrainConfig
from drgrpo.config.device_memory import (
    GIB,
    OVERHEAD_BYTES,
    REDUCE_BUCKET,
    ModelShape,
    check_device_memory,
    kv_bytes,
    model_shape,
    sampler_bytes,
    smallest_device,
    trainer_bytes,
)
from drgrpo.config.errors import ConfigError
from drgrpo.config.machine import (
    PROCESS_BYTES,
    check_devices,
    check_disk,
    check_machine,
    check_memory,
    free_disk,
    free_memory,
    host_bytes,
)
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.config.overrides import apply_overrides
from drgrpo.settings import Settings, resolved

ROOT = Path(__file__).parents[2]
NUM_PARAMETERS = 135_000_000


def test_host_memory_on_cpu_is_optimizer_gradient_and_copies():
    # 12 + 4 + 2 bytes for the trainer, 2 and the KV cache for the sampler.
    needed = host_bytes(TrainConfig(), num_parameters=NUM_PARAMETERS, on_cpu=True, kvcache_bytes=GIB)
    assert needed == PROCESS_BYTES + 20 * NUM_PARAMETERS + GIB
    float32 = apply_overrides({}, {"model.dtype": "float32", "loss.kl_coef": 0.1})
    needed = host_bytes(float32, num_parameters=NUM_PARAMETERS, on_cpu=True, kvcache_bytes=GIB)
    assert needed == PROCESS_BYTES + (20 + 4 + 4) * NUM_PARAMETERS + GIB


def test_host_memory_on_a_gpu_is_the_offloaded_optimizer_with_its_gradient_kept_twice():
    offloaded = apply_overrides({}, {"trainer.offload_optimizer": True})
    for config, expected in ((TrainConfig(), 0), (offloaded, 20 * NUM_PARAMETERS)):
        needed = host_bytes(config, num_parameters=NUM_PARAMETERS, on_cpu=False, kvcache_bytes=0)
        assert needed == PROCESS_BYTES + expected


def test_an_evaluation_needs_the_samplers_memory_alone():
    # bfloat16: 2 bytes a parameter and the KV cache for each engine; no gradient, no moments, no reference.
    sizes = {"num_parameters": NUM_PARAMETERS, "kvcache_bytes": GIB, "train": False}
    two = apply_overrides({}, {"placement.num_rollout_engines": 2, "loss.kl_coef": 0.1, "model.dtype": "float32"})
    offloaded = apply_overrides({}, {"trainer.offload_optimizer": True})
    assert host_bytes(TrainConfig(), on_cpu=True, **sizes) == PROCESS_BYTES + 2 * NUM_PARAMETERS + GIB
    assert host_bytes(two, on_cpu=True, **sizes) == PROCESS_BYTES + 2 * (4 * NUM_PARAMETERS + GIB)
    assert host_bytes(offloaded, on_cpu=False, **sizes) == PROCESS_BYTES
    needed = PROCESS_BYTES + 2 * NUM_PARAMETERS + GIB
    assert check_memory(TrainConfig(), free_bytes=needed, on_cpu=True, **sizes) == []
    (mistake,) = check_memory(TrainConfig(), free_bytes=needed - 1, on_cpu=True, **sizes)
    assert "needs about 4.3 GiB" in mistake.problem
    (mistake,) = check_memory(offloaded, free_bytes=GIB, on_cpu=False, **sizes)
    assert mistake.remedy == "free memory"


SHAPE = ModelShape(
    num_parameters=1000, hidden=8, intermediate=32, num_layers=3, vocabulary=50, kv_width=4, q_width=8, is_fused=False
)
LAYER = 2 * (8 * 8 + 2 * 32)  # bytes of a layer's activations for one token, in bfloat16
AT_WORK = 2 * 4 * 32


def device_memory(shape=SHAPE, **options):
    """Bytes of the trainer for micro-batches of 100 tokens."""
    values = {"trainer.tokens_per_microbatch": 100, "trainer.logprob_chunk_tokens": 1}
    config = apply_overrides({}, values | {name.replace("__", "."): value for name, value in options.items()})
    return trainer_bytes(config, shape)


def test_device_memory_is_the_states_what_is_kept_and_what_is_at_work():
    head = (2 * 1 + 8 * 8) * 50
    assert head < 100 * AT_WORK
    assert device_memory() == 18 * 1000 + 3 * 100 * LAYER + 100 * AT_WORK
    wide = replace(SHAPE, vocabulary=5000)
    assert device_memory(wide, trainer__logprob_chunk_tokens=90) == 18_000 + 3 * 100 * LAYER + (2 * 90 + 8 * 8) * 5000
    # No more rows than a micro-batch has.
    assert device_memory(wide, trainer__logprob_chunk_tokens=999) == 18_000 + 3 * 100 * LAYER + (2 * 100 + 8 * 8) * 5000
    recomputed = device_memory(trainer__gradient_checkpointing=True)
    assert recomputed == 18 * 1000 + 3 * 100 * 2 * 8 + 100 * (LAYER + AT_WORK)
    # Two of three layers: the third is kept, and nothing of it is left when the two recompute.
    assert device_memory(trainer__gradient_checkpointing=0.7) == recomputed + 100 * (LAYER - 2 * 8) - 100 * LAYER


def test_a_layer_of_the_trainers_own_keeps_less_in_16_bits():
    fused = replace(SHAPE, is_fused=True)
    # Of width 8 four instead of eight, keys and values, gate and up: 2 bytes each.
    assert device_memory(fused) - device_memory() == 3 * 100 * (2 * (4 * 8 + 2 * 4 + 2 * 32) - LAYER)
    # Queries may be wider than hidden states, and heads that pass a norm are kept before it too.
    assert device_memory(replace(fused, q_width=16)) - device_memory(fused) == 3 * 100 * 2 * 2 * 8
    assert device_memory(replace(fused, norms_heads=True)) - device_memory(fused) == 3 * 100 * 2 * (8 + 4)
    assert device_memory(fused, model__dtype="float32") == device_memory(model__dtype="float32")


def test_device_memory_without_the_optimizer_is_the_weights_and_a_reference_is_one_more_copy():
    # Gradients that go to the host pass through DeepSpeed's bucket.
    offloaded = device_memory(trainer__offload_optimizer=True) - 2 * REDUCE_BUCKET
    assert device_memory() - offloaded == 16 * 1000
    assert device_memory(loss__kl_coef=0.1) - device_memory() == 2 * 1000
    float32 = device_memory(model__dtype="float32")
    # In float32 the MLP keeps its product too.
    assert float32 == 20 * 1000 + 2 * (3 * 100 * (LAYER + 2 * 32) + 100 * AT_WORK)
    assert kv_bytes(TrainConfig(), SHAPE) == 2 * 2 * 3 * 4


def test_the_states_are_divided_among_the_ranks():
    alone, shared = device_memory(loss__kl_coef=0.1), device_memory(loss__kl_coef=0.1, trainer__num_ranks=4)
    assert alone - (shared - 2 * REDUCE_BUCKET - 2 * 1000) == 20 * 1000 * 3 // 4  # small weights are gathered whole


def test_two_ranks_need_what_was_measured():
    """The peak of each of two H200 in workload A (benchmarks/results/h200-x2-step-a.json), and that of one alone."""
    shape = replace(MODELS[MEASURED_MODEL], is_fused=True)
    values = {"trainer.tokens_per_microbatch": 21100, "trainer.logprob_chunk_tokens": 21100}
    for num_ranks, name in ((1, "h200-step-a"), (2, "h200-x2-step-a")):
        measured = json.loads((RESULTS / f"{name}.json").read_text())["median"]["memory/trainer_peak_gib"]
        config = apply_overrides({}, values | {"trainer.num_ranks": num_ranks})
        assert trainer_bytes(config, shape) / GIB == pytest.approx(measured, rel=0.015)


def test_the_shape_is_read_from_the_config_or_nothing_is_known():
    config = {
        "hidden_size": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "vocab_size": 50,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert model_shape(config, 1000) == SHAPE
    assert model_shape({**config, "num_key_value_heads": None}, 1000).kv_width == 8
    assert model_shape({**config, "head_dim": 16}, 1000) == replace(SHAPE, kv_width=32, q_width=64)
    assert model_shape({**config, "model_type": "qwen3"}, 1000) == replace(SHAPE, is_fused=True, norms_heads=True)
    assert model_shape({**config, "intermediate_size": "32"}, 1000) is None
    assert model_shape(config, None) is None
    assert model_shape({**config, "model_type": "qwen2"}, 1000) == replace(SHAPE, is_fused=True)
    assert model_shape({**config, "model_type": "gemma"}, 1000) == SHAPE


LARGE = ModelShape(
    10**9, hidden=8, intermediate=32, num_layers=10, vocabulary=50, kv_width=500_000, q_width=8, is_fused=False
)


def judged_on(device_bytes, shared_by=1, **options):
    values = {
        "trainer.tokens_per_microbatch": 100,
        "trainer.logprob_chunk_tokens": 1,
        "rollout.gpu_memory_utilization": 0.5,
        "data.max_prompt_tokens": 100,
        "rollout.max_completion_tokens": 100,
    }
    config = apply_overrides({}, values | {name.replace("__", "."): value for name, value in options.items()})
    return check_device_memory(config, LARGE, device_bytes=device_bytes, shared_by=shared_by)


def test_trainer_sampler_and_overhead_fit_on_the_device_or_not():
    # 18 bytes for each of 1e9 parameters, ten layers of activations; the sampler as much.
    trainer = 18 * 10**9 + 10 * 100 * LAYER + 100 * AT_WORK
    enough = 2 * (trainer + OVERHEAD_BYTES)
    assert OVERHEAD_BYTES == 2.5 * GIB
    assert judged_on(enough + 2) == []
    (mistake,) = judged_on(enough - 2 * 10**8)
    assert (mistake.field, mistake.value) == ("rollout.gpu_memory_utilization", 0.5)
    assert (
        "of the device's 38.3 GiB the sampler takes 19.2, the trainer needs about 16.8, and 2.5 go to"
        in mistake.problem
    )
    assert mistake.remedy.startswith("lower it to at most 0.49, or set trainer.gradient_checkpointing to 1, or set")
    # On a device of 22 GiB there is no room for the sampler's weights beside the trainer.
    (mistake,) = judged_on(22 * GIB)
    assert "lower it" not in mistake.remedy and "trainer.offload_optimizer" in mistake.remedy
    assert judged_on(22 * GIB, trainer__offload_optimizer=True) == []
    assert judged_on(22 * GIB, placement__sleep=True) == []
    # Two runs like this one need twice the memory.
    quarter = {"rollout__gpu_memory_utilization": 0.25}
    assert judged_on(2 * enough + 4, shared_by=2, **quarter) == []
    (mistake,) = judged_on(2 * enough - 2 * 10**8, shared_by=2, **quarter)
    assert "of a run's part, 38.4, GiB the sampler takes" in mistake.problem


def test_the_samplers_share_holds_its_weights_and_one_sequence():
    # 2e9 bytes of weights and 200 tokens of 2 x 2 x 10 x 500,000 bytes.
    assert (
        sampler_bytes(apply_overrides({}, {"data.max_prompt_tokens": 100, "rollout.max_completion_tokens": 100}), LARGE)
        == 6 * 10**9
    )
    assert judged_on(60 * 10**9, rollout__gpu_memory_utilization=0.1) == []
    (mistake,) = judged_on(60 * 10**9, rollout__gpu_memory_utilization=0.0999)
    assert "the KV cache of one sequence need 5.6" in mistake.problem and mistake.remedy.startswith("raise it")


def test_a_cache_of_a_given_size_counts_instead_of_the_share():
    cache = {"rollout__kv_cache_gib": 10}
    # 18 bytes for each of 1e9 parameters and ten layers; 2 for the sampler's weights, 1.5 GiB of work, 10 GiB of cache.
    trainer = 18 * 10**9 + 10 * 100 * LAYER + 100 * AT_WORK
    enough = trainer + OVERHEAD_BYTES + 2 * 10**9 + 11.5 * GIB
    assert (
        judged_on(enough + 2, **cache) == []
        and judged_on(enough + 2, rollout__gpu_memory_utilization=0.9, **cache) == []
    )
    (mistake,) = judged_on(enough - GIB, **cache)
    assert (mistake.field, mistake.value) == ("rollout.kv_cache_gib", 10)
    assert mistake.remedy.startswith("lower it to at most 9.0, or set trainer.gradient")
    (mistake,) = judged_on(enough - 9 * GIB, **cache)  # one sequence needs 3.7 GiB
    assert "lower it" not in mistake.remedy
    (mistake,) = judged_on(80 * GIB, rollout__kv_cache_gib=2)
    assert "this is 5.4; the sampler's weights and the KV cache of one sequence need 5.6" in mistake.problem


def test_devices_are_asked_by_index_and_by_uuid(monkeypatch):
    memory = {"GPU-a": 10, 0: 30, 1: 20}
    driver = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=memory[handle]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert smallest_device(["0", "1"]) == 20
    assert smallest_device(["0", "GPU-a"]) == 10
    assert smallest_device([]) is None

    def broken():
        raise OSError("no driver")

    driver.nvmlInit = broken
    assert smallest_device(["0"]) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert smallest_device(["0"]) is None


def test_the_estimate_is_within_two_percent_of_every_measured_peak_and_the_page_shows_it():
    fused = [peak for path in MEASURED for peak in measured_peaks(path)]
    plain = list(measured_peaks(RESULTS / "h100-update-recompute-a.json", is_fused=False))
    assert (len(fused), len(plain)) == (7, 4)
    for _, computed, measured in [*fused, *plain]:
        assert computed == pytest.approx(measured, rel=0.02)
    page = ROOT / "docs" / "memory.md"
    assert rewritten(page.read_text()) == page.read_text(), "run: python -m benchmarks.memory docs/memory.md"


@pytest.mark.parametrize(("name", "device"), [("gsm8k", "80 GB"), ("gsm8k-24gb", "24 GB")])
def test_a_deployment_fits_on_the_card_that_it_is_for(name, device):
    config, (gib, _) = load_deployment(name), DEVICES[device]
    assert config.rollout.gpu_memory_utilization <= sampler_share(config, MODELS["Qwen2.5-1.5B"], gib)
    assert sampler_share(config, MODELS["Qwen2.5-7B"], gib) == 0


def test_the_small_card_trains_the_same_algorithm():
    small, large = (load_deployment(name).model_dump() for name in ("gsm8k-24gb", "gsm8k"))
    layout = {
        "rollout": ("max_num_seqs", "gpu_memory_utilization", "kv_cache_gib"),
        "trainer": ("offload_optimizer", "tokens_per_microbatch", "gradient_checkpointing", "logprob_chunk_tokens"),
    }
    for section, names in layout.items():
        for name in names:
            assert small[section].pop(name) != large[section].pop(name)
    assert small == large


def test_too_little_memory_names_model_size_and_what_is_free():
    arguments = {"num_parameters": 7_000_000_000, "on_cpu": True, "kvcache_bytes": 2 * GIB}
    (mistake,) = check_memory(TrainConfig(), free_bytes=24 * GIB, **arguments)
    assert mistake.field == "model.path" and "24.0 GiB are free" in mistake.problem
    assert "DRGRPO_CPU_KVCACHE_GIB" in mistake.remedy
    assert check_memory(TrainConfig(), free_bytes=200 * GIB, **arguments) == []


def test_disk_counts_the_checkpoints_kept_the_best_and_the_one_being_written(tmp_path):
    config = apply_overrides({}, {"checkpoint.every_steps": 10, "checkpoint.keep_last": 2})
    needed = 4 * 12 * NUM_PARAMETERS + 2 * NUM_PARAMETERS + GIB // 2
    arguments = {"num_parameters": NUM_PARAMETERS, "directory": tmp_path}
    assert check_disk(config, free_bytes=needed, **arguments) == []
    (mistake,) = check_disk(config, free_bytes=needed - 1, **arguments)
    assert (mistake.field, mistake.value) == ("DRGRPO_RUNS_DIR", str(tmp_path))


def test_the_disk_of_an_evaluation_counts_no_checkpoint_and_no_export(tmp_path):
    arguments = {"num_parameters": NUM_PARAMETERS, "directory": tmp_path, "train": False}
    assert check_disk(TrainConfig(), free_bytes=GIB // 2, **arguments) == []
    (mistake,) = check_disk(TrainConfig(), free_bytes=GIB // 2 - 1, **arguments)
    assert "about 0.5 GiB (tables)" in mistake.problem and "keep_last" not in mistake.remedy


def test_each_rank_needs_a_device_and_engines_share_them():
    shared = apply_overrides({}, {"trainer.num_ranks": 4, "placement.num_rollout_engines": 4})
    assert check_devices(shared, num_devices=4) == []
    (mistake,) = check_devices(shared, num_devices=3)
    assert (mistake.value, mistake.problem) == (4, "each rank needs a GPU of its own, there are 3")


def test_an_evaluation_needs_devices_for_its_engines_alone():
    config = apply_overrides({}, {"trainer.num_ranks": 8, "placement.num_rollout_engines": 4})
    assert check_devices(config, num_devices=4, train=False) == []
    (mistake,) = check_devices(config, num_devices=3, train=False)
    assert (mistake.field, mistake.value) == ("placement.num_rollout_engines", 4)
    assert mistake.problem == "each engine needs a GPU of its own, there are 3"


def test_a_container_limit_counts_without_file_pages(tmp_path):
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 4}\n")
    assert free_memory(tmp_path) == GIB - GIB // 4
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 0
    assert free_memory(tmp_path / "none") > 0


def test_the_disk_of_a_directory_to_be_made_is_its_parents(tmp_path):
    assert free_disk(tmp_path / "a" / "b") > 0


def test_this_machine_is_read_and_judged(tmp_path):
    settings = resolved(Settings(root=tmp_path))
    fields = [mistake.field for mistake in check_machine(TrainConfig(), settings, num_parameters=10**13)]
    assert fields == ["model.path", "DRGRPO_RUNS_DIR"]
    fields = [m.field for m in check_machine(TrainConfig(), settings, on_cpu=False, num_devices=0)]
    assert fields[-1] == "trainer.num_ranks"


HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from drgrpo.config.output_lock import hold_output_directory
with hold_output_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_on_an_output_directory_is_refused_until_the_first_dies(tmp_path):
    directory = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use by another run") as caught, hold_output_directory(directory):
            pass
        (mistake,) = caught.value.mistakes
        assert mistake.value == str(directory) and f"process {holder.pid}" in mistake.problem
    finally:
        holder.kill()
        holder.wait()
    with hold_output_directory(directory) as held:
        assert held == directory


def test_processes_of_one_flow_run_wait_for_each_other_and_others_are_refused(tmp_path, monkeypatch):
    first, waits = ExitStack(), []
    first.enter_context(hold_output_directory(tmp_path, "flow-run-1"))

    def leave(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            first.close()

    monkeypatch.setattr("drgrpo.config.output_lock.time", SimpleNamespace(sleep=leave))
    for other in ("", "flow-run-2", "flow-run"):
        with pytest.raises(ConfigError, match="in use by another run"), hold_output_directory(tmp_path, other):
            pass
    with hold_output_directory(tmp_path, "flow-run-1"):
        assert len(waits) == 3
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), hold_output_directory(tmp_path):
            pass
