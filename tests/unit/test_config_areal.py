"""Converting an AReaL YAML."""

import pytest
import yaml

from drgrpo.config.areal import convert, flattened, interpolated, main, nested
from drgrpo.config.errors import ConfigError
from drgrpo.config.overrides import load_config

# Hand-written in the form of AReaL's examples of 2026-08-22.
DR_GRPO = """
experiment_name: mine
seed: 1
total_train_epochs: 2
tokenizer_path: ${actor.path}
cluster: {n_nodes: 1, n_gpus_per_node: 6, fileroot: /data}
rollout:
  backend: "sglang:d2p1t2"
  experiment_name: ${experiment_name}
  max_head_offpolicyness: 2
  max_concurrent_rollouts: 256
  consumer_batch_size: ${train_dataset.batch_size}
gconfig: {n_samples: 4, min_new_tokens: 0, max_new_tokens: 512, greedy: false, temperature: 0.9}
actor:
  backend: "fsdp:d2p1t1"
  path: Qwen/Qwen2.5-0.5B-Instruct
  dtype: bfloat16
  gradient_checkpointing: true
  mb_spec: {max_tokens_per_mb: 8192}
  optimizer:
    {type: adam, lr: 2.0e-6, weight_decay: 0.0, beta2: 0.99, eps: 1e-8, gradient_clipping: 0.5,
     lr_scheduler_type: constant, warmup_steps_proportion: 0.01}
  eps_clip: 0.3
  reward_scaling: 10.0
  reward_bias: -0.5
  kl_ctl: 0.0
  ppo_n_minibatches: 2
  use_decoupled_loss: true
  rejection_sampling: {metric: ratio, upper: 4.0}
  reward_norm: {mean_level: group, std_level: null, group_size: "${gconfig.n_samples}"}
  adv_norm: {mean_level: batch, std_level: batch}
ref: {path: "${actor.path}"}
vllm: {model: "${actor.path}", gpu_memory_utilization: 0.8, max_model_len: 32768}
train_dataset: {batch_size: 64, shuffle: true, path: openai/gsm8k, type: rl, max_length: 256}
valid_dataset: {batch_size: 64, path: openai/gsm8k, type: rl}
saver: {freq_epochs: 1, freq_steps: null}
evaluator: {freq_epochs: null, freq_steps: 10}
stats_logger: {wandb: {mode: online}}
"""


@pytest.fixture
def areal():
    return yaml.safe_load(DR_GRPO)


def changed(areal, **changes):
    """The mapping with dotted keys changed (`__` for a dot)."""
    return nested({**flattened(areal), **{name.replace("__", "."): value for name, value in changes.items()}})


def test_each_value_arrives_at_its_counterpart(areal):
    overrides, _ = convert(areal)
    assert overrides == {
        "seed": 1,
        "data.train": "openai/gsm8k",
        "data.eval": "openai/gsm8k",
        "data.prompts_per_step": 64,
        "data.max_prompt_tokens": 256,
        "data.prompt_template": "{question}\nPlease put your final answer within \\boxed{}.",
        "rollout.group_size": 4,
        "rollout.max_completion_tokens": 512,
        "rollout.temperature": 0.9,
        "rollout.gpu_memory_utilization": 0.8,
        "rollout.sampler_logprobs": True,
        "model.path": "Qwen/Qwen2.5-0.5B-Instruct",
        "model.dtype": "bfloat16",
        "trainer.gradient_checkpointing": True,
        "trainer.tokens_per_microbatch": 8192,
        "trainer.num_ranks": 2,
        "trainer.completions_per_update": 128,  # 64 * 4 / 2
        "optimizer.lr": 2e-6,
        "optimizer.weight_decay": 0.0,
        "optimizer.beta2": 0.99,
        "optimizer.eps": "1e-8",
        "optimizer.grad_clip": 0.5,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 4,  # 1 % of 232 * 2 optimizer steps
        "loss.clip_eps_low": 0.3,
        "loss.clip_eps_high": 0.3,
        "loss.kl_coef": 0.0,
        "loss.aggregation": "constant",
        "loss.correction": "token_mask",
        "loss.correction_cap": 4.0,
        "reward.scaling": 10.0,
        "reward.bias": -0.5,
        "reward.clip": 20.0,
        "reward.truncated_reward": "keep",
        "adv_norm.mean_level": "group",
        "adv_norm.std_level": "none",
        "adv_norm.leave_one_out": False,
        "placement.num_rollout_engines": 2,
        "total_steps": 232,  # 2 * (7473 // 64)
        "evaluation.every_steps": 10,
        "checkpoint.every_steps": 116,
    }
    assert load_config(nested(overrides)).optimizer.eps == 1e-8


def test_what_is_not_carried_is_listed_with_its_reason(areal):
    _, notes = convert(areal)
    left = {note.key: note.reason for note in notes if not note.carried}
    assert left["rollout.backend"] == "`sglang:d2p1t2`: a vLLM engine has one device, without tensor parallelism"
    assert "actor.backend" not in left
    assert "policy" in left["rollout.max_head_offpolicyness"]
    assert "tokens" in left["actor.adv_norm.*"]
    assert {"experiment_name", "cluster.*", "rollout.*", "ref.*", "vllm.*", "stats_logger.*"} <= set(left)
    # Switched off, or said once at the top.
    assert not {"gconfig.greedy", "gconfig.min_new_tokens", "rollout.experiment_name", "saver.*"} & set(left)


def test_what_means_something_else_is_listed_apart(areal):
    _, notes = convert(areal)
    carried = {note.key for note in notes if note.carried}
    assert {"loss aggregation", "gconfig.max_new_tokens", "actor.reward_scaling", "train_dataset.max_length"} <= carried


def test_keys_that_no_one_knows_are_listed_too(areal):
    _, notes = convert({**areal, "novelty": {"strength": 3}})
    assert {note.key: note.reason for note in notes}["novelty.strength"] == "unknown to this converter"


def test_an_option_that_says_something_when_off_is_listed(areal):
    _, notes = convert(changed(areal, train_dataset__shuffle=False, train_dataset__type=None))
    assert "train_dataset.*" in {note.key for note in notes}


def test_grpo_keeps_its_standard_deviation_and_areals_token_mean(areal):
    overrides, _ = convert(changed(areal, actor__reward_norm__std_level="group"))
    assert (overrides["adv_norm.std_level"], overrides["loss.aggregation"]) == ("group", "token_mean")


def test_adv_norm_counts_when_it_stands_alone(areal):
    del areal["actor"]["reward_norm"]
    overrides, notes = convert(changed(areal, actor__adv_norm__mean_level="group", actor__adv_norm__std_level=None))
    assert (overrides["adv_norm.mean_level"], overrides["adv_norm.std_level"]) == ("group", "none")
    assert any(note.carried and "tokens" in note.reason for note in notes if note.key.startswith("actor.adv_norm"))


def test_without_any_normalization_both_levels_are_none(areal):
    del areal["actor"]["reward_norm"], areal["actor"]["adv_norm"]
    overrides, _ = convert(areal)
    assert (overrides["adv_norm.mean_level"], overrides["adv_norm.std_level"]) == ("none", "none")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"level": "token", "action": "clamp", "upper": 2}, ("token_tis", 2.0)),
        ({"level": "sequence", "action": "mask", "upper": 3}, ("sequence_mask", 3.0)),
        ({}, ("token_mask", 5.0)),
        ({"metric": "kl_k3", "upper": 1.0}, (None, None)),
        ({"upper": 5.0, "lower": 0.5}, (None, None)),
    ],
)
def test_rejection_sampling_is_a_correction_where_it_caps_a_ratio(areal, section, expected):
    areal["actor"]["rejection_sampling"] = section or {"metric": "ratio"}
    overrides, notes = convert(areal)
    assert (overrides.get("loss.correction"), overrides.get("loss.correction_cap")) == expected
    if expected[0] is None:
        assert "actor.rejection_sampling.*" in {note.key for note in notes if not note.carried}


def test_the_older_names_of_the_cap_and_of_the_devices_are_read(areal):
    del areal["actor"]["rejection_sampling"], areal["actor"]["backend"], areal["rollout"]["backend"]
    areal["actor"]["behav_imp_weight_cap"] = 5.0
    overrides, _ = convert({**areal, "allocation_mode": "sglang:d4p1t1+d2p2t1"})
    assert (overrides["loss.correction"], overrides["loss.correction_cap"]) == ("token_mask", 5.0)
    assert (overrides["placement.num_rollout_engines"], overrides["trainer.num_ranks"]) == (4, 4)


def test_there_are_no_more_engines_than_ranks_whose_devices_they_share(areal):
    overrides, notes = convert(changed(areal, rollout__backend="sglang:d6p1t1", actor__backend="fsdp:d2p1t1"))
    assert (overrides["placement.num_rollout_engines"], overrides["trainer.num_ranks"]) == (2, 2)
    (note,) = (note for note in notes if note.key == "rollout.backend")
    assert note.carried and "each of 2 ranks" in note.reason
    assert not any(n.key == "rollout.backend" for n in convert(changed(areal, rollout__backend="sglang:d2p1t1"))[1])


def test_an_allocation_that_is_not_understood_is_listed(areal):
    del areal["actor"]["backend"], areal["rollout"]["backend"]
    overrides, notes = convert({**areal, "allocation_mode": "d8"})
    assert "trainer.num_ranks" not in overrides
    assert ("allocation_mode", False) in {(note.key, note.carried) for note in notes}


def test_epochs_of_an_unknown_dataset_need_its_size(areal):
    other = changed(areal, train_dataset__path="my/data")
    overrides, notes = convert(other)
    assert "total_steps" not in overrides and "data.prompt_template" not in overrides
    assert "total_train_epochs" in {note.key for note in notes}
    assert convert(other, num_train_problems=640)[0]["total_steps"] == 20


def test_steps_win_over_epochs(areal):
    assert convert({**areal, "total_train_steps": 7})[0]["total_steps"] == 7


def test_minibatches_that_do_not_divide_are_listed(areal):
    overrides, notes = convert(changed(areal, actor__ppo_n_minibatches=3))
    assert "trainer.completions_per_update" not in overrides
    assert "actor.ppo_n_minibatches" in {note.key for note in notes}


@pytest.mark.parametrize("value", ["many", 0, 2.5, -1])
def test_a_count_that_is_none_is_a_mistake(areal, value):
    with pytest.raises(ConfigError, match=r"actor\.ppo_n_minibatches"):
        convert(changed(areal, actor__ppo_n_minibatches=value))


def test_a_key_left_out_has_areals_default():
    overrides, _ = convert({"train_dataset": {"path": "my/data"}})
    assert overrides["optimizer.lr"] == 1e-3 and overrides["loss.kl_coef"] == 0.1
    assert overrides["rollout.max_completion_tokens"] == 16384


def test_interpolations_keep_types_follow_chains_and_leave_sections():
    flat = flattened({"a": {"b": 3, "c": "${a.b}"}, "d": "${a.c}", "e": "x-${a.b}-${d}", "f": "${a}"})
    resolved = {"a.b": 3, "a.c": 3, "d": 3, "e": "x-3-3", "f": "${a}"}
    assert interpolated(flat) == resolved


@pytest.mark.parametrize("flat", [{"a": "${b}"}, {"a": "${oc.env:HOME}"}, {"a": "${b}", "b": "${a}"}])
def test_an_interpolation_that_leads_nowhere_is_a_mistake(flat):
    with pytest.raises(ConfigError):
        interpolated(flat)


def test_the_command_prints_a_deployment_that_loads_and_a_table(tmp_path, capsys):
    source = tmp_path / "areal.yaml"
    source.write_text(DR_GRPO)
    assert main([str(source)]) == 0
    printed = capsys.readouterr().out
    config = load_config(yaml.safe_load(printed))
    assert (config.optimizer.eps, config.rollout.group_size) == (1e-8, 4)
    assert "# Not carried:" in printed and "# Carried, with another meaning:" in printed


def test_the_command_writes_a_file(tmp_path, capsys):
    source, target = tmp_path / "areal.yaml", tmp_path / "mine.yaml"
    source.write_text(DR_GRPO)
    assert main([str(source), "-o", str(target)]) == 0
    assert load_config(yaml.safe_load(target.read_text())).total_steps == 232
    assert capsys.readouterr().out.startswith("#")


@pytest.mark.parametrize("content", ["- 1", "a: [", "", DR_GRPO.replace("n_samples: 4", "n_samples: 1")])
def test_a_file_that_cannot_be_converted_writes_nothing(tmp_path, capsys, content):
    source, target = tmp_path / "areal.yaml", tmp_path / "mine.yaml"
    source.write_text(content)
    assert main([str(source), "-o", str(target)]) == 1
    assert not target.exists()
    assert "in the configuration" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
