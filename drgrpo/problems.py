"""The problems of a run: both splits loaded, checked and tokenised as the configuration says."""

from dataclasses import dataclass
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.data.generated import PREFIX
from drgrpo.data.problems import ProblemSet, TokenizedProblem, dataset_digest
from drgrpo.data.prompts import default_stop, tokenize_problems
from drgrpo.data.sources import Source, load_splits


@dataclass(frozen=True, slots=True)
class RunProblems:
    """Training problems in their order of steps, the fixed evaluation subset, and what was dropped on the way."""

    train: ProblemSet[TokenizedProblem]
    evaluation: list[TokenizedProblem]
    stop: tuple[str, ...]
    description: dict[str, Any]


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


def load_run_problems(config: TrainConfig, tokenizer: Any) -> RunProblems:
    """Load both splits. Raises DataError that names field, value and remedy."""
    splits = load_splits(*sources(config))
    train, num_long = _tokenize(config, splits.train, tokenizer)
    held_out, num_long_eval = _tokenize(config, splits.held_out, tokenizer)
    evaluation = held_out[: config.evaluation.num_problems or None]
    return RunProblems(
        train=ProblemSet(train, prompts_per_step=config.data.prompts_per_step, seed=config.seed),
        evaluation=evaluation,
        stop=(*config.rollout.stop, *default_stop(config.data.prompt_style)),
        description={
            "train": {"source": config.data.train, "digest": dataset_digest(train), "num_problems": len(train)},
            "evaluation": {
                "source": config.data.eval,
                "digest": dataset_digest(evaluation),
                "num_problems": len(evaluation),
            },
            "dropped": {
                "train_duplicates": splits.num_train_duplicates,
                "train_held_out": splits.num_train_held_out,
                "train_long_prompts": num_long,
                "evaluation_long_prompts": num_long_eval,
            },
        },
    )


def _tokenize(config: TrainConfig, problems: list[Any], tokenizer: Any) -> tuple[list[TokenizedProblem], int]:
    data = config.data
    return tokenize_problems(
        problems,
        style=data.prompt_style,
        system_prompt=data.system_prompt,
        prompt_template=data.prompt_template,
        max_prompt_tokens=data.max_prompt_tokens,
        tokenizer=tokenizer,
    )
