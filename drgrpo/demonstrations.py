"""Demonstrations: given completions as a step's finished sample table, for the update that else reads sampled ones.

With advantage 1 and ratio 1 the policy gradient is the gradient of the log-likelihood, and the update is supervised
training.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from drgrpo.config import TrainConfig
from drgrpo.data.errors import DataError
from drgrpo.data.problems import Problem
from drgrpo.data.sources import load_problems
from drgrpo.problems import RunProblems, sources
from drgrpo.tables import TableRef, find_table, read_table, write_table

# GSM8K's calculator annotations: the one of `48/2 = <<48/2=24>>24`.
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def load_completions(config: TrainConfig) -> dict[str, str]:
    """Question to completion, of the training problems; empty unless `data.completion_field` names a column.

    Raises:
        DataError: The column is missing, or a row of it is empty or no text.
    """
    field = config.data.completion_field
    if not field:
        return {}
    train, _ = sources(config)
    try:
        loaded = load_problems(replace(train, answer_field=field))
    except DataError as error:
        # Its first line is about the answer's column, the others are the faulty rows.
        faults = str(error).partition("\n")[2] or str(error)
        raise DataError(
            f"data.completion_field = {field!r}: must hold text in each row of data.train; name its column, or leave "
            f"it empty where the answer is the completion:\n{faults}"
        ) from error
    return {problem.question: problem.answer for problem in loaded.problems}


class Demonstrations:
    """The demonstrations of a run: of each training problem its completion and the tokenizer's end token.

    Raises DataError when the tokenizer has no end token, and as `load_completions`.
    """

    def __init__(self, config: TrainConfig, problems: RunProblems, tokenizer: Any, run_id: str) -> None:
        self._config, self._problems, self._tokenizer, self._run_id = config, problems, tokenizer, run_id
        self._completions = load_completions(config)
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"model.path = {config.model.path!r}: its tokenizer has no end token, so that no completion would "
                "learn to end; set eos_token in its tokenizer_config.json"
            )

    def write(self, step: int, path: Path) -> tuple[TableRef, dict[str, float]]:
        """The table of iteration `step`, written to `path` unless it is there whole, and its metrics.

        A completion of more than `rollout.max_completion_tokens` tokens, the end token included, is left out.

        Raises:
            DataError: None of the step's completions is that short.
        """
        table = find_table(path) or write_table(path, self._columns(step))
        lengths = pc.list_value_length(read_table(table)["completion_ids"])
        return table, {
            "demonstrations/num_completions": float(table.num_rows),
            "demonstrations/dropped": float(self._config.data.prompts_per_step - table.num_rows),
            "completion_length/mean": pc.mean(lengths).as_py(),
            "completion_length/max": float(pc.max(lengths).as_py()),
        }

    def _columns(self, step: int) -> dict[str, list[Any]]:
        limit = self._config.rollout.max_completion_tokens
        texts = [(problem, self._text(problem.problem)) for problem in self._problems.of_step(step)]
        all_of_step = [(problem, text, self._ids(text)) for problem, text in texts]
        kept = [(problem, text, ids) for problem, text, ids in all_of_step if len(ids) <= limit]
        if not kept:
            shortest = min(len(ids) for _, _, ids in all_of_step)
            raise DataError(
                f"rollout.max_completion_tokens = {limit}: every one of the {len(all_of_step)} completions of step "
                f"{step} is longer, the shortest has {shortest} tokens; raise the limit"
            )
        return {
            "run_id": [self._run_id] * len(kept),
            "step": [step] * len(kept),
            "problem_id": [problem.id for problem, _, _ in kept],
            "group_id": list(range(len(kept))),
            "question": [problem.problem.question for problem, _, _ in kept],
            "answer": [problem.problem.answer for problem, _, _ in kept],
            "prompt": [problem.prompt for problem, _, _ in kept],
            "prompt_ids": [list(problem.prompt_ids) for problem, _, _ in kept],
            "completion": [text for _, text, _ in kept],
            "completion_ids": [ids for _, _, ids in kept],
            "advantage": [1.0] * len(kept),
        }

    def _text(self, problem: Problem) -> str:
        text = self._completions.get(problem.question, problem.answer)
        return _ANNOTATION.sub("", text) if self._config.data.strip_annotations else text

    def _ids(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id]
