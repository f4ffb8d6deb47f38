"""Given completions as sample tables, and what of a configuration has no meaning for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.steps import load_deployment
from drgrpo.config import TrainConfig
from drgrpo.config.checks import DEMONSTRATION_CHECKS, check_config
from drgrpo.config.errors import ConfigError
from drgrpo.config.overrides import apply_overrides
from drgrpo.data.errors import DataError
from drgrpo.demonstrations import Demonstrations
from drgrpo.host import Host
from drgrpo.preflight import checked_config
from drgrpo.settings import Settings, resolved
from drgrpo.tables import TableRef, find_table, read_table
from drgrpo.trainer.samples import read_samples
from tests.tiny_model import build_tiny_model

ANSWERS = [f"{n}/2 = <<{n}/2={n // 2}>>{n // 2} left.\n#### {n // 2}" for n in (2, 4, 6)]
END = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny model and both splits; `worked.solution` is another completion than the answer."""
    folder = tmp_path_factory.mktemp("demonstrations")
    build_tiny_model(folder / "model")
    rows = [{"question": f"q{i}?", "answer": a, "worked": {"solution": f"A{i} << 1"}} for i, a in enumerate(ANSWERS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text(json.dumps({"question": "other?", "answer": "#### 1"}) + "\n")
    return folder


def overrides(data: Path, **options: Any) -> dict[str, Any]:
    """Three demonstrations a step; `options` by dotted path, `.` written as `__`."""
    return {
        "model.path": str(data / "model"),
        "data.train": str(data),
        "data.eval": str(data),
        "data.prompt_style": "plain",
        "data.prompts_per_step": 3,
        "data.max_prompt_tokens": 64,
        "rollout.group_size": 1,
        "rollout.max_completion_tokens": 64,
        "adv_norm.mean_level": "none",
        "trainer.completions_per_update": 3,
        "reward.num_workers": 1,
    } | {name.replace("__", "."): value for name, value in options.items()}


def written(data: Path, run_dir: Path, step: int = 0, **options: Any) -> tuple[TableRef, dict[str, float], Host]:
    config = apply_overrides({}, overrides(data, **options))
    host = Host(config, str(data / "model"), "run-1", str(run_dir))
    host.close()
    return *host.demonstrations(step), host


def by_question(table: TableRef, name: str) -> dict[str, Any]:
    rows = read_table(table).to_pylist()
    return {row["question"]: row[name] for row in rows}


def test_a_demonstration_is_the_answers_tokens_and_the_end_token_with_advantage_1(data: Path, tmp_path: Path) -> None:
    table, metrics, host = written(data, tmp_path)
    assert by_question(table, "completion") == {f"q{i}?": answer for i, answer in enumerate(ANSWERS)}
    for sample, problem in zip(read_samples(table), host.problems.of_step(0), strict=True):
        assert list(sample.prompt_ids) == problem.prompt_ids
        assert host.tokenizer.decode(sample.completion_ids[:-1]) == problem.problem.answer
        assert (sample.completion_ids[-1], sample.advantage) == (END, 1.0)
    assert len({sample.group_id for sample in read_samples(table)}) == 3
    lengths = [len(sample.completion_ids) for sample in read_samples(table)]
    assert metrics == {
        "demonstrations/num_completions": 3,
        "demonstrations/dropped": 0,
        "completion_length/mean": pytest.approx(sum(lengths) / 3),
        "completion_length/max": max(lengths),
    }
    assert find_table(tmp_path / "steps" / "000000" / "advantage.parquet") == table


def test_calculator_annotations_go_where_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    table, _, _ = written(data, tmp_path, data__strip_annotations=True)
    assert by_question(table, "completion")["q1?"] == "4/2 = 2 left.\n#### 2"
    assert by_question(table, "answer")["q1?"] == ANSWERS[1]


def test_a_column_of_completions_is_imitated_and_the_answer_stays_the_reference(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data__completion_field": "worked.solution", "data__strip_annotations": True}
    table, _, host = written(data, tmp_path, **options)
    assert by_question(table, "completion") == {f"q{i}?": f"A{i} << 1" for i in range(3)}
    assert by_question(table, "answer")["q2?"] == ANSWERS[2]
    assert {problem.problem.answer for problem in host.problems.of_step(0)} == set(ANSWERS)


def test_a_completion_over_the_limit_is_left_out_and_counted_and_never_cut(data: Path, tmp_path: Path) -> None:
    whole, _, _ = written(data, tmp_path / "whole")
    lengths = {question: len(ids) for question, ids in by_question(whole, "completion_ids").items()}
    assert len(set(lengths.values())) == 1
    longer = tmp_path / "longer"
    longer.mkdir()
    rows = [{"question": f"q{i}?", "answer": answer + " !" * (i == 1)} for i, answer in enumerate(ANSWERS)]
    (longer / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (longer / "test.jsonl").write_text(json.dumps({"question": "other?", "answer": "#### 1"}) + "\n")
    limit = lengths["q0?"]
    options: dict[str, Any] = {
        "data__train": str(longer),
        "data__eval": str(longer),
        "rollout__max_completion_tokens": limit,
    }
    table, metrics, _ = written(data, tmp_path / "cut", **options)
    assert set(by_question(table, "completion")) == {"q0?", "q2?"}
    assert (metrics["demonstrations/num_completions"], metrics["demonstrations/dropped"]) == (2, 1)
    with pytest.raises(DataError, match=rf"max_completion_tokens = {limit - 1}: .* shortest has {limit} tokens"):
        written(data, tmp_path / "none", **{**options, "rollout__max_completion_tokens": limit - 1})


def test_a_table_that_is_there_is_not_written_again_and_a_damaged_one_is(data: Path, tmp_path: Path) -> None:
    table, metrics, host = written(data, tmp_path)
    path = Path(table.path)
    before = path.stat().st_mtime_ns
    assert host.demonstrations(0) == (table, metrics)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-1])
    assert host.demonstrations(0) == (table, metrics)
    assert path.stat().st_mtime_ns != before


def test_a_column_that_does_not_hold_completions_is_told_before_anything_starts(data: Path, tmp_path: Path) -> None:
    settings = resolved(Settings(root=tmp_path, device="cpu"))
    changed = overrides(data, data__completion_field="worked.solutoin")
    with pytest.raises(ConfigError) as caught:
        checked_config(TrainConfig(), changed, settings, checks=DEMONSTRATION_CHECKS)
    (mistake,) = caught.value.mistakes
    text = str(mistake)
    assert text.startswith("data.completion_field = 'worked.solutoin': must hold text")
    assert "train.jsonl:1: no column 'worked.solutoin' (did you mean 'solution'?)" in text
    assert "answer" not in text.splitlines()[1]


def test_a_tokenizer_without_an_end_token_is_refused(data: Path, tmp_path: Path) -> None:
    _, _, host = written(data, tmp_path)
    host.tokenizer.eos_token = None
    with pytest.raises(DataError, match="its tokenizer has no end token"):
        Demonstrations(host.config, host.problems, host.tokenizer, "run-1")


def test_what_has_no_part_in_the_likelihood_is_refused_all_at_once(data: Path, tmp_path: Path) -> None:
    settings = resolved(Settings(root=tmp_path, device="cpu"))
    wrong = overrides(
        data,
        rollout__group_size=2,
        adv_norm__mean_level="group",
        adv_norm__std_level="batch",
        loss__kl_coef=0.1,
        loss__entropy_coef=0.01,
        loss__correction="token_tis",
        trainer__completions_per_update=1,
        optimizer__lr=-1,
    )
    with pytest.raises(ConfigError) as caught:
        checked_config(TrainConfig(), wrong, settings, checks=DEMONSTRATION_CHECKS)
    assert {mistake.field for mistake in caught.value.mistakes} == {
        *("rollout.group_size", "adv_norm.mean_level", "adv_norm.std_level", "loss.kl_coef", "loss.entropy_coef"),
        *("loss.correction", "trainer.completions_per_update", "optimizer.lr"),
    }
    assert "rollout.group_size = 2: each prompt has one demonstration; supervised training needs 1" in str(caught.value)


def test_another_temperature_is_warned_of(data: Path) -> None:
    config = apply_overrides({}, overrides(data, rollout__temperature=0.7))
    (mistake,) = check_config(config, DEMONSTRATION_CHECKS)
    assert (mistake.field, mistake.severity) == ("rollout.temperature", "warning")


@pytest.mark.parametrize("aggregation", ["constant", "sequence_mean", "token_mean"])
def test_the_shipped_configuration_passes_with_any_aggregation(aggregation: str) -> None:
    config = apply_overrides(load_deployment("gsm8k-sft"), {"loss.aggregation": aggregation})
    assert check_config(config, DEMONSTRATION_CHECKS) == []


def test_the_warm_start_and_what_follows_it_share_their_prompts() -> None:
    sft, rl, grpo = (load_deployment(f"gsm8k-{name}") for name in ("sft", "smollm2", "smollm2-grpo"))
    for name in ("prompt_style", "system_prompt", "prompt_template", "max_prompt_tokens"):
        assert getattr(sft.data, name) == getattr(rl.data, name)
    changed = {"std_level": "group"}, {"aggregation": "sequence_mean"}
    same = rl.model_copy(
        update={"adv_norm": rl.adv_norm.model_copy(update=changed[0]), "loss": rl.loss.model_copy(update=changed[1])}
    )
    assert grpo == same
