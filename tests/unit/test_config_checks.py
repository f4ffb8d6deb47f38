"""Combinations that cannot learn, contradict each other, or do nothing."""

import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.checks import EVALUATION_CHECKS, check_config, check_model_context
from drgrpo.config.errors import ConfigError
from drgrpo.config.inert import INERT
from drgrpo.config.overrides import apply_overrides
from drgrpo.config.paths import FIELDS

GENERATED = {"data.train": "reasoning_gym:chain_sum", "data.eval": "reasoning_gym:chain_sum"}


def found(overrides):
    """{field: severity} of a configuration."""
    return {mistake.field: mistake.severity for mistake in check_config(apply_overrides({}, overrides))}


def test_the_defaults_have_neither_errors_nor_warnings():
    assert check_config(TrainConfig()) == []


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"rollout.group_size": 1}, "rollout.group_size"),
        ({"rollout.group_size": 1, "adv_norm.leave_one_out": True}, "rollout.group_size"),
        ({"rollout.group_size": 1, "adv_norm.mean_level": "none", "adv_norm.std_level": "group"}, "adv_norm.std_level"),
        (
            {
                "rollout.group_size": 1,
                "data.prompts_per_step": 1,
                "trainer.completions_per_update": 1,
                "adv_norm.mean_level": "batch",
            },
            "rollout.group_size",
        ),
        ({"adv_norm.mean_level": "none", "adv_norm.leave_one_out": True}, "adv_norm.leave_one_out"),
        ({"adv_norm.normalize_by": "mean"}, "adv_norm.normalize_by"),
        (
            {"adv_norm.normalize_by": "mean", "adv_norm.std_level": "group", "reward.bias": -0.5},
            "adv_norm.normalize_by",
        ),
        ({"trainer.completions_per_update": 100}, "trainer.completions_per_update"),
        ({"trainer.completions_per_update": 2048}, "trainer.completions_per_update"),
        ({"loss.correction": "token_tis"}, "loss.correction"),
        ({"loss.correction": "token_tis", "rollout.sampler_logprobs": True, "rollout.top_p": 0.9}, "rollout.top_p"),
        ({"loss.correction": "token_mask", "rollout.sampler_logprobs": True, "rollout.top_k": 50}, "rollout.top_k"),
        (
            {"loss.correction": "token_mask", "rollout.sampler_logprobs": True, "loss.correction_cap": 0.5},
            "loss.correction_cap",
        ),
        ({"rollout.top_k": 1}, "rollout.top_k"),
        ({"rollout.stop": ["a", ""]}, "rollout.stop"),
        ({"reward.functions": {"gsm8k": 0, "format": 0}}, "reward.functions"),
        ({"reward.functions": {"gms8k": 1}}, "reward.functions"),
        ({"reward.scaling": 0}, "reward.scaling"),
        ({"reward.scaling": 10, "reward.bias": 1, "reward.clip": 5}, "reward.clip"),
        ({"reward.overlong.enabled": True, "reward.overlong.buffer_tokens": 2000}, "reward.overlong.buffer_tokens"),
        ({**GENERATED, "evaluation.num_problems": 50}, "data.num_train_problems"),
        ({**GENERATED, "data.num_train_problems": 500}, "evaluation.num_problems"),
        ({"data.num_train_problems": 100}, "data.prompts_per_step"),
        ({"data.eval_split": "train"}, "data.eval_split"),
        ({"data.train": "a/x.jsonl", "data.eval": "a/x.jsonl"}, "data.eval"),
        ({"data.prompt_template": "Solve it."}, "data.prompt_template"),
        ({"optimizer.warmup_steps": 800}, "optimizer.warmup_steps"),
        ({"loss.clip_eps_low": 0, "loss.clip_eps_high": 0}, "loss.clip_eps_high"),
        ({"trainer.num_ranks": 256}, "trainer.num_ranks"),
        ({"health.entropy.action": "rollback", "checkpoint.every_steps": 1}, "checkpoint.keep_last"),
        ({"health.reward_drop.action": "rollback", "checkpoint.every_minutes": 0}, "checkpoint.every_steps"),
        ({"placement.num_rollout_engines": 129, "trainer.num_ranks": 128}, "placement.num_rollout_engines"),
        ({"placement.num_rollout_engines": 2}, "placement.num_rollout_engines"),
    ],
)
def test_what_cannot_learn_or_contradicts_itself_is_an_error(overrides, field):
    assert found(overrides).get(field) == "error"


def test_an_evaluation_is_judged_by_what_it_samples_and_not_by_what_training_would_need():
    of_training = {
        "rollout.group_size": 1,
        "rollout.top_k": 1,
        "trainer.completions_per_update": 100,
        "trainer.num_ranks": 256,
        "data.num_train_problems": 1,
        "data.eval_split": "train",
        "data.train": "reasoning_gym:chain_sum",
        "reward.scaling": 0,
        "optimizer.warmup_steps": 800,
    }
    assert check_config(apply_overrides({}, of_training), EVALUATION_CHECKS) == []
    wrong = {
        "data.eval": "reasoning_gym:chain_sum",
        "data.prompt_template": "Solve it.",
        "reward.functions": {"gms8k": 1},
        "rollout.stop": [""],
        "model.revision": "a\0",
    }
    mistakes = check_config(apply_overrides({}, wrong), EVALUATION_CHECKS)
    assert {mistake.field: mistake.severity for mistake in mistakes} == dict.fromkeys(
        (
            "reward.functions",
            "rollout.stop",
            "evaluation.num_problems",
            "data.prompt_template",
            "model.revision",
        ),
        "error",
    )


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"rollout.top_p": 0.9}, "rollout.top_p"),
        ({"rollout.top_k": 50}, "rollout.top_k"),
        ({"rollout.ignore_eos": True}, "rollout.ignore_eos"),
        ({"rollout.forced_lengths": [8, 16]}, "rollout.forced_lengths"),
        ({"trainer.completions_per_update": 1024, "loss.clip_eps_high": 0.28}, "loss.clip_eps_high"),
        ({"trainer.completions_per_update": 1024, "loss.clip_eps_low": 0.1}, "loss.clip_eps_low"),
        ({"data.completion_field": "solution"}, "data.completion_field"),
        ({"data.strip_annotations": True}, "data.strip_annotations"),
        ({"optimizer.lr": 0}, "optimizer.lr"),
        ({"optimizer.min_lr_ratio": 0.1}, "optimizer.min_lr_ratio"),
        ({"data.prompt_style": "r1", "data.system_prompt": "Think."}, "data.system_prompt"),
        ({"loss.correction_cap": 3}, "loss.correction_cap"),
        ({"loss.kl_estimator": "k1"}, "loss.kl_estimator"),
        ({"reward.overlong.penalty": 2}, "reward.overlong.penalty"),
        ({"reward.functions": {"math": 1}, "reward.answer_mode": "lenient"}, "reward.answer_mode"),
        ({"reward.functions.format": 0}, "reward.functions.format"),
        ({"data.generator_options": {"max_terms": 3}}, "data.generator_options"),
        ({"trainer.tokens_per_microbatch": 1024}, "trainer.tokens_per_microbatch"),
        ({"checkpoint.keep_last": 5, "checkpoint.every_minutes": 0}, "checkpoint.keep_last"),
        ({"adv_norm.normalize_by": "mean", "adv_norm.std_level": "batch"}, "adv_norm.std_level"),
    ],
)
def test_what_works_and_is_probably_not_meant_is_a_warning(overrides, field):
    assert found(overrides) == {field: "warning"}


@pytest.mark.parametrize(
    "overrides",
    [
        {"adv_norm.std_level": "group", "loss.aggregation": "sequence_mean"},
        {"adv_norm.std_level": "group", "adv_norm.normalize_by": "mean"},
        {"adv_norm.leave_one_out": True},
        {"rollout.group_size": 1, "adv_norm.mean_level": "batch"},
        {"rollout.group_size": 1, "adv_norm.mean_level": "none"},
        {"loss.correction": "token_tis", "rollout.sampler_logprobs": True},
        {"loss.correction": "sequence_mask", "rollout.sampler_logprobs": True, "rollout.top_k": 0},
        {"reward.overlong.enabled": True, "reward.overlong.buffer_tokens": 1024},
        {**GENERATED, "data.num_train_problems": 500, "evaluation.num_problems": 50},
        {"data.num_train_problems": 128},
        {"optimizer.warmup_steps": 799},
        {"reward.scaling": 10, "reward.bias": -0.5, "reward.clip": 20},
        {"optimizer.schedule": "cosine", "optimizer.min_lr_ratio": 0.1},
        {"reward.functions": {"my_package.brevity": 1}},
        {"trainer.num_ranks": 4, "placement.num_rollout_engines": 4},
    ],
)
def test_the_algorithms_people_compare_with_pass(overrides):
    assert found(overrides) == {}


def test_a_forced_length_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"rollout\.forced_lengths"):
        apply_overrides({}, {"rollout.ignore_eos": True, "rollout.forced_lengths": [4, 0]})


def test_the_nearest_divisors_of_a_step_are_named():
    config = apply_overrides({}, {"trainer.completions_per_update": 100})
    (mistake,) = check_config(config)
    assert "1024 completions" in mistake.problem
    assert mistake.remedy == "the nearest that do: 16, 32, 64, 128"


def test_an_engine_without_a_rank_is_told_with_both_numbers():
    config = apply_overrides({}, {"placement.num_rollout_engines": 4, "trainer.num_ranks": 2})
    (mistake,) = check_config(config)
    assert (mistake.field, mistake.value, mistake.also) == ("placement.num_rollout_engines", 4, ("trainer.num_ranks",))
    assert "trainer.num_ranks = 2" in mistake.problem
    assert mistake.remedy == "lower it to at most 2, or raise trainer.num_ranks to 4"


def test_one_sample_leaves_nothing_to_leave_out():
    config = apply_overrides({}, {"rollout.group_size": 1, "adv_norm.leave_one_out": True})
    assert "leave_one_out" in check_config(config)[0].problem


def test_prompt_and_completion_limits_must_fit_the_context():
    config = TrainConfig()
    assert check_model_context(config, 2048) == []
    (mistake,) = check_model_context(config, 2047)
    assert (mistake.field, mistake.value) == ("rollout.max_completion_tokens", 1024)
    assert "2048" in mistake.problem and "at most 1023" in mistake.remedy
    (mistake,) = check_model_context(config, 1024)
    assert "data.max_prompt_tokens" in mistake.remedy


def test_a_longer_evaluation_limit_counts_for_the_context():
    config = apply_overrides({}, {"evaluation.max_completion_tokens": 3072})
    (mistake,) = check_model_context(config, 4000)
    assert (mistake.field, mistake.value) == ("evaluation.max_completion_tokens", 3072)


def test_errors_come_before_warnings():
    config = apply_overrides({}, {"optimizer.min_lr_ratio": 0.5, "trainer.num_ranks": 256})
    assert [mistake.severity for mistake in check_config(config)] == ["error", "warning"]


def test_every_mistake_names_a_field_and_a_remedy():
    assert {path for path, _, _ in INERT} <= set(FIELDS)
    overrides = {
        "rollout.group_size": 1,
        "optimizer.lr": 0,
        "data.prompt_template": "x",
        "loss.correction": "token_tis",
    }
    for mistake in check_config(apply_overrides({}, overrides)):
        assert mistake.field in FIELDS and mistake.remedy and mistake.problem
        assert set(mistake.also) <= set(FIELDS)


@pytest.mark.parametrize(("path", "value"), [("reward.bias", float("nan")), ("loss.clip_eps_high", float("inf"))])
def test_a_number_that_is_not_finite_is_refused(path, value):
    with pytest.raises(ConfigError, match=f"{path} = (nan|inf): input should be a finite number"):
        apply_overrides({}, {path: value})


@pytest.mark.parametrize(
    ("patience", "every", "needed"), [(1, 1, 3), (3, 1, 5), (5, 1, 7), (3, 2, 3), (3, 3, 3), (3, 4, 2), (3, 50, 2)]
)
def test_a_rollback_needs_a_checkpoint_from_before_what_the_gate_saw(patience, every, needed):
    gate = {"health.entropy.action": "rollback", "health.entropy.patience": patience, "checkpoint.every_steps": every}
    assert check_config(apply_overrides({}, gate | {"checkpoint.keep_last": needed})) == []
    (mistake,) = check_config(apply_overrides({}, gate | {"checkpoint.keep_last": needed - 1}))
    assert (mistake.field, mistake.value, mistake.severity) == ("checkpoint.keep_last", needed - 1, "error")
    assert f"checkpoint.every_steps = {every}" in mistake.problem
    assert f"health.entropy.patience = {patience}" in mistake.problem
    assert mistake.remedy.startswith(f"give {needed} or more")


def test_a_rollback_to_the_best_evaluation_needs_no_more_than_the_best_checkpoint():
    gate = {"health.reward_drop.action": "rollback", "health.reward_drop.patience": 9, "checkpoint.every_steps": 1}
    assert check_config(apply_overrides({}, gate)) == []
    by_time = {"health.entropy.action": "rollback", "checkpoint.every_steps": 0}  # nobody knows how many steps
    assert check_config(apply_overrides({}, by_time)) == []
