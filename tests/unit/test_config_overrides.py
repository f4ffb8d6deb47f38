"""Overrides, and the one entry that lists every mistake at once."""

import pickle

import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.areal_keys import AREAL_KEYS
from drgrpo.config.errors import ConfigError, shortened
from drgrpo.config.flat import config_difference, config_digest, flatten
from drgrpo.config.overrides import apply_overrides, load_config
from drgrpo.config.paths import FIELDS, nearest


def mistakes_of(values, overrides=None):
    with pytest.raises(ConfigError) as caught:
        load_config(values, overrides)
    return {mistake.field: mistake for mistake in caught.value.mistakes}


def test_the_defaults_are_the_papers_and_pass_every_check():
    config = load_config({})
    assert config == TrainConfig()
    assert (config.completions_per_step, config.updates_per_step) == (1024, 8)
    assert (config.adv_norm.mean_level, config.adv_norm.std_level, config.loss.aggregation) == (
        "group",
        "none",
        "constant",
    )


def test_an_override_changes_its_field_and_no_other():
    before = TrainConfig()
    after = load_config(before, {"optimizer.lr": 2e-6, "rollout.group_size": 16})
    assert config_difference(before, after) == {"rollout.group_size": (8, 16), "optimizer.lr": (1e-6, 2e-6)}


def test_text_from_a_command_line_becomes_the_type_of_its_field():
    config = load_config({}, {"optimizer.lr": "2e-6", "rollout.group_size": "16", "rollout.ignore_eos": "true"})
    assert (config.optimizer.lr, config.rollout.group_size, config.rollout.ignore_eos) == (2e-6, 16, True)


def test_a_base_mapping_is_left_as_it_was():
    values = {"reward": {"functions": {"gsm8k": 1.0}}}
    load_config(values, {"reward.functions.format": 0.2, "optimizer.lr": 1e-5})
    assert values == {"reward": {"functions": {"gsm8k": 1.0}}}


@pytest.mark.parametrize("base", [{}, {"reward": {"functions": {"gsm8k": 1.0}}}, TrainConfig()])
def test_a_reward_function_is_added_by_key_and_keeps_the_others(base):
    config = load_config(base, {"reward.functions.format": 0.2})
    assert config.reward.functions == {"gsm8k": 1.0, "format": 0.2}


def test_reward_functions_set_whole_replace_the_others_even_beside_a_key():
    config = load_config({}, {"reward.functions.format": 0.5, "reward.functions": {"math": 1}})
    assert config.reward.functions == {"math": 1.0, "format": 0.5}


def test_a_dotted_path_of_a_reward_function_is_one_key():
    config = load_config({}, {"reward.functions.my_package.rewards.brevity": 0.1})
    assert config.reward.functions == {"gsm8k": 1.0, "my_package.rewards.brevity": 0.1}


def test_generator_options_are_set_by_key():
    overrides = {"data.train": "reasoning_gym:chain_sum", "data.num_train_problems": 500}
    config = load_config({}, {**overrides, "data.generator_options.max_terms": 3})
    assert config.data.generator_options == {"max_terms": 3}


def test_a_section_may_be_given_as_a_mapping_and_keeps_its_other_fields():
    config = load_config({"optimizer": {"beta2": 0.9}}, {"optimizer": {"lr": 3e-6}})
    assert (config.optimizer.lr, config.optimizer.beta2) == (3e-6, 0.9)


def test_areals_level_keys_work_verbatim_and_null_is_none():
    grpo = load_config({}, {"actor.adv_norm.mean_level": "batch", "actor.adv_norm.std_level": "group"})
    assert (grpo.adv_norm.mean_level, grpo.adv_norm.std_level) == ("batch", "group")
    dr_grpo = load_config(grpo, {"actor.adv_norm.mean_level": "group", "actor.adv_norm.std_level": None})
    assert (dr_grpo.adv_norm.mean_level, dr_grpo.adv_norm.std_level) == ("group", "none")
    assert load_config(grpo, {"adv_norm.std_level": None}).adv_norm.std_level == "none"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gconfig.n_samples", 4, {"rollout.group_size": 4}),
        ("gconfig.max_new_tokens", 512, {"rollout.max_completion_tokens": 512}),
        ("gconfig.top_k", 100000000, {"rollout.top_k": -1}),
        ("gconfig.stop", None, {"rollout.stop": "[]"}),
        ("actor.optimizer.lr", "1.7e-5", {"optimizer.lr": 1.7e-5}),
        ("actor.eps_clip", 0.4, {"loss.clip_eps_low": 0.4, "loss.clip_eps_high": 0.4}),
        ("actor.mask_no_eos_with_zero", False, {"reward.truncated_reward": "keep"}),
        ("vllm.no_enable_prefix_caching", True, {"rollout.prefix_caching": False}),
        ("train_dataset.batch_size", 256, {"data.prompts_per_step": 256}),
        ("saver.freq_steps", None, {"checkpoint.every_steps": 0}),
        ("actor.reward_bias", -0.5, {"reward.bias": -0.5}),
    ],
)
def test_an_areal_key_sets_its_counterpart(key, value, expected):
    flat = flatten(load_config({}, {key: value}))
    assert {path: flat[path] for path in expected} == expected


def test_every_areal_key_leads_to_fields_that_exist():
    assert {path for target in AREAL_KEYS.values() for path in target.paths} <= set(FIELDS)


@pytest.mark.parametrize("order", [1, -1])
def test_the_upper_clip_alone_beats_the_key_for_both(order):
    overrides = dict(list({"actor.eps_clip": 0.2, "actor.eps_clip_higher": 0.28}.items())[::order])
    loss = load_config({}, overrides).loss
    assert (loss.clip_eps_low, loss.clip_eps_high) == (0.2, 0.28)


def test_one_value_by_two_names_must_agree():
    assert load_config({}, {"gconfig.n_samples": 4, "rollout.group_size": 4}).rollout.group_size == 4
    found = mistakes_of({}, {"gconfig.n_samples": 4, "rollout.group_size": 16})
    assert "`gconfig.n_samples` = 4" in found["rollout.group_size"].problem


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("optimzer.lr", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("rollout.groupsize", "rollout.group_size"),
        ("trainer.group_size", "rollout.group_size"),
        ("num_generations", "rollout.group_size"),
        ("rollout.max_completion_token", "rollout.max_completion_tokens"),
        ("reward.function", "reward.functions"),
        ("adv_norm.std_lvl", "adv_norm.std_level"),
        ("seeed", "seed"),
    ],
)
def test_a_mistyped_path_suggests_the_nearest(typo, meant):
    assert nearest(typo) == meant
    assert f"`{meant}`" in mistakes_of({}, {typo: 1})[typo].remedy


def test_a_mistyped_areal_key_suggests_areals():
    assert (
        "`actor.adv_norm.std_level`"
        in mistakes_of({}, {"actor.adv_norm.stdlevel": None})["actor.adv_norm.stdlevel"].remedy
    )


def test_a_path_near_to_nothing_lists_what_there_is():
    assert "optimizer" in mistakes_of({}, {"zzzz": 1})["zzzz"].remedy
    assert "optimizer.beta1" in mistakes_of({}, {"optimizer.qqqqqqqq": 1})["optimizer.qqqqqqqq"].remedy


def test_an_unknown_key_of_the_base_suggests_the_nearest():
    found = mistakes_of({"optimizer": {"learning_rate": 1e-6}, "rolout": {"group_size": 4}})
    assert "`optimizer.lr`" in found["optimizer.learning_rate"].remedy
    assert "`rollout`" in found["rolout"].remedy


def test_all_mistakes_are_listed_at_once_with_field_value_problem_and_remedy():
    values = {"optimizer": {"lr": -1}, "trainer": {"completions_per_update": 100}, "datta": {}}
    overrides = {"rollout.temprature": 0.5, "rollout.top_p": "many", "adv_norm.mean_level": "token"}
    found = mistakes_of(values, overrides)
    assert set(found) == {
        "optimizer.lr",
        "trainer.completions_per_update",
        "datta",
        "rollout.temprature",
        "rollout.top_p",
        "adv_norm.mean_level",
    }
    assert found["optimizer.lr"].value == -1
    assert "greater than or equal to 0" in found["optimizer.lr"].problem
    assert "≥ 0, ≤ 1" in found["optimizer.lr"].remedy
    assert "`group` or `batch` or `none`" in found["adv_norm.mean_level"].remedy


def test_the_error_has_one_line_for_each_mistake_and_survives_pickling():
    with pytest.raises(ConfigError) as caught:
        load_config({}, {"lr": 1, "rollout.group_size": 0})
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 mistakes in the configuration:"
    assert lines[1] == "  - lr = 1: no such setting; did you mean `optimizer.lr`?"
    assert lines[2].startswith("  - rollout.group_size = 0: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_check_that_rests_on_an_invalid_value_is_not_reported():
    # 128 prompts times 3 would not be a multiple of 128 * 8; with an invalid group size nothing is known.
    assert set(mistakes_of({}, {"rollout.group_size": "three", "trainer.completions_per_update": 1000})) == {
        "rollout.group_size"
    }


def test_a_bad_value_names_the_spelling_it_was_given_in():
    found = mistakes_of({}, {"gconfig.temperature": -1})
    assert "`gconfig.temperature`" in found["rollout.temperature"].problem


@pytest.mark.parametrize("value", [5, "text", [1], None])
def test_a_section_that_is_no_mapping_is_a_mistake(value):
    assert set(mistakes_of({"optimizer": value}, {"optimizer.lr": 1e-6})) == {"optimizer"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("reward.functions", {"gsm8k": "x"}), ("reward.functions", {}), ("reward.functions", [1]), ("rollout.stop", [3])],
)
def test_a_bad_element_is_a_mistake_of_its_field(field, value):
    found = mistakes_of({}, {field: value})
    assert [name.startswith(field) for name in found] == [True]


def test_a_configuration_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="not a mapping"):
        load_config(None)


def test_applying_overrides_validates_and_leaves_sense_to_the_checks():
    assert apply_overrides({}, {"rollout.group_size": 3}).rollout.group_size == 3
    with pytest.raises(ConfigError, match="no such setting"):
        apply_overrides(TrainConfig(), {"rollout.group": 3})


def test_flat_values_are_scalars_with_a_path_for_each_reward_function():
    flat = flatten(load_config({}, {"reward.functions.format": 0.2, "rollout.stop": ["</answer>", "ß"]}))
    assert flat["reward.functions.format"] == 0.2
    assert flat["rollout.stop"] == '["</answer>", "ß"]'
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_the_digest_depends_on_values_and_not_on_their_order_or_spelling():
    one = load_config({"seed": 3, "optimizer": {"lr": "1e-5"}})
    two = load_config({"optimizer": {"lr": 1e-5}}, {"seed": "3"})
    assert config_digest(one) == config_digest(two)
    assert len(config_digest(one)) == 64
    assert config_digest(one) != config_digest(load_config(one, {"seed": 4}))


def test_the_difference_shows_what_one_side_lacks():
    old = load_config({}, {"reward.functions": {"gsm8k": 1}})
    new = load_config({}, {"reward.functions": {"math": 1}})
    assert config_difference(old, new) == {
        "reward.functions.gsm8k": (1.0, None),
        "reward.functions.math": (None, 1.0),
    }


def test_a_long_value_is_shortened_in_its_middle():
    assert shortened("a" * 500) == "'" + "a" * 39 + "..." + "a" * 36 + "'"
