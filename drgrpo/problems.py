"""The problems of a run: its splits loaded, checked and tokenised as the configuration says."""

from dataclasses import dataclass, replace
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.data.generated import PREFIX
from drgrpo.data.problems import Problem, ProblemSet, TokenizedProblem, dataset_digest
from drgrpo.data.prompts import default_stop, tokenize_problems
from drgrpo.data.sources import Source, load_problems, load_splits


@dataclass(frozen=True, slots=True)
class RunProblems:
    """Training problems in their order of steps, the fixed evaluation subset, and what was dropped on the way.

    `train` is None where nothing is trained.
    """

    train: ProblemSet[TokenizedProblem] | None
    evaluation: list[TokenizedProblem]
    stop: tuple[str, ...]
    description: dict[str, Any]

    def of_step(self, step: int) -> list[TokenizedProblem]:
        """The training problems of iteration `step`."""
        assert self.train is not None
        return self.train.problems(step)


def sources(config: TrainConfig) -> tuple[Source, Source]:
    """The training source and the held-out one."""
    data = config.data
    train = Source(
        data.train,
        data.train_split,
        subset=data.subset,
        question_field=data.question_field,
        answer_field=data.answer_field,
        num_problems=data.num_train_problems,
        generator_options=data.generator_options,
    )
    held_out = Source(
        data.eval,
        data.eval_split,
        subset=data.subset,
        question_field=data.question_field,
        answer_field=data.answer_field,
        # A generator has no end, so its held-out set is the evaluated subset; a dataset's is held out whole.
        num_problems=config.evaluation.num_problems if data.eval.startswith(PREFIX) else 0,
        generator_options=data.generator_options,
        held_out=True,
        config_field="data.eval",
    )
    return train, held_out


def load_run_problems(config: TrainConfig, tokenizer: Any, *, train: bool = True) -> RunProblems:
    """Load both splits, or without `train` the held-out one. Raises DataError that names field, value and remedy."""
    source, held_out = sources(config)
    if not train:
        return _evaluated(config, load_problems(held_out).problems, tokenizer)
    splits = load_splits(source, held_out)
    evaluated = _evaluated(config, splits.held_out, tokenizer)
    problems, num_long = _tokenize(config, splits.train, tokenizer)
    dropped = {
        "train_duplicates": splits.num_train_duplicates,
        "train_held_out": splits.num_train_held_out,
        "train_long_prompts": num_long,
    }
    return replace(
        evaluated,
        train=ProblemSet(problems, prompts_per_step=config.data.prompts_per_step, seed=config.seed),
        description={
            "train": _described(config.data.train, problems),
            "evaluation": evaluated.description["evaluation"],
            "dropped": dropped | evaluated.description["dropped"],
        },
    )


def _evaluated(config: TrainConfig, held_out: list[Problem], tokenizer: Any) -> RunProblems:
    problems, num_long = _tokenize(config, held_out, tokenizer)
    evaluation = problems[: config.evaluation.num_problems or None]
    return RunProblems(
        train=None,
        evaluation=evaluation,
        stop=(*config.rollout.stop, *default_stop(config.data.prompt_style)),
        description={
            "evaluation": _described(config.data.eval, evaluation),
            "dropped": {"evaluation_long_prompts": num_long},
        },
    )


def _described(source: str, problems: list[TokenizedProblem]) -> dict[str, Any]:
    return {"source": source, "digest": dataset_digest(problems), "num_problems": len(problems)}


def _tokenize(config: TrainConfig, problems: list[Problem], tokenizer: Any) -> tuple[list[TokenizedProblem], int]:
    data = config.data
    return tokenize_problems(
        problems,
        style=data.prompt_style,
        system_prompt=data.system_prompt,
        prompt_template=data.prompt_template,
        max_prompt_tokens=data.max_prompt_tokens,
        tokenizer=tokenizer,
    )
