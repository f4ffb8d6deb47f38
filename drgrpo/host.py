"""The CPU side of a run: chooses and tokenises problems, grades, computes advantages, writes the sample tables.

A table grows by stages: rollout.parquet, then reward.parquet, then advantage.parquet, each whole by itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from drgrpo.advantage import compute_advantages, overlong_penalty, shape_rewards
from drgrpo.config import TrainConfig
from drgrpo.data.problems import TokenizedProblem, sample_seed
from drgrpo.demonstrations import Demonstrations
from drgrpo.metrics.samples import sample_metrics
from drgrpo.problems import load_run_problems
from drgrpo.rewards.grade import Grade, GradeItem
from drgrpo.rewards.pool import GraderPool
from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling
from drgrpo.tables import TableRef, add_columns, read_table, write_table

Metrics = dict[str, float]
Mode = Literal["greedy", "sampled"]

# Evaluation samples have seeds of their own, the same at every step, so that differences are paired.
_EVALUATION_STEP = -1
_NUM_PROBES = 4
_PROBE_TOKENS = 32


class Host:
    """Everything between the engines. Holds no state that a restart would lose; without `train` it only evaluates."""

    def __init__(self, config: TrainConfig, model_path: str, run_id: str, run_dir: str, *, train: bool = True) -> None:
        self.config, self.run_id, self.run_dir = config, run_id, Path(run_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(
            model_path, trust_remote_code=config.model.trust_remote_code, local_files_only=True
        )
        self.problems = load_run_problems(config, self.tokenizer, train=train)
        self.pool = GraderPool(
            config.reward.functions,
            num_workers=config.reward.num_workers,
            timeout_s=config.reward.timeout_s,
            answer_mode=config.reward.answer_mode,
        )

    def describe(self) -> dict[str, Any]:
        """Sources, digests and counts of the data."""
        return self.problems.description

    def probes(self) -> list[tuple[list[int], list[int]]]:
        """Fixed (prompt ids, completion ids) on which sampler and trainer are compared after every push."""
        chosen = self.problems.evaluation[:_NUM_PROBES]
        limit = min(_PROBE_TOKENS, self.config.rollout.max_completion_tokens - 1) or 1
        answers = [self.tokenizer.encode(p.problem.answer, add_special_tokens=False)[:limit] for p in chosen]
        return [(list(p.prompt_ids), answer) for p, answer in zip(chosen, answers, strict=True)]

    def requests(self, step: int) -> list[SampleRequest]:
        """The samples that iteration `step` asks for, group by group."""
        requests = self._requests(self.problems.of_step(step), step, self.config.rollout.group_size)
        lengths = self.config.rollout.forced_lengths
        if not lengths:
            return requests
        return [replace(r, max_tokens=lengths[index % len(lengths)]) for index, r in enumerate(requests)]

    def sampling(self, mode: Mode = "sampled", *, evaluation: bool = False) -> Sampling:
        """Sampling parameters of the rollout, or of evaluation in either mode."""
        rollout = self.config.rollout
        limit = (evaluation and self.config.evaluation.max_completion_tokens) or rollout.max_completion_tokens
        return Sampling(
            temperature=rollout.temperature if mode == "sampled" else 0.0,
            top_p=rollout.top_p if mode == "sampled" else 1.0,
            top_k=rollout.top_k if mode == "sampled" else -1,
            max_tokens=limit,
            stop=self.problems.stop,
            ignore_eos=rollout.ignore_eos and not evaluation,
            logprobs=rollout.sampler_logprobs and not evaluation,
        )

    def write_rollout(self, step: int, policy_version: int, *parts: list[Completion]) -> TableRef:
        """Write the table of sampled completions; `parts` are the engines' shares in the order of `requests`."""
        columns = self._columns(
            self.problems.of_step(step),
            [completion for part in parts for completion in part],
            step=step,
            policy_version=policy_version,
            samples=self.config.rollout.group_size,
            seed_step=step,
        )
        return write_table(self._path(step, "rollout"), columns)

    def score(self, table: TableRef, step: int) -> TableRef:
        """Grade every completion and add the reward columns."""
        rows = read_table(table).to_pydict()
        return add_columns(table, self._path(step, "reward"), self._reward_columns(rows))

    def advantages(self, table: TableRef, step: int) -> tuple[TableRef, Metrics]:
        """Add the advantage column; returns the finished table and the step's sample metrics."""
        columns = read_table(table).select(["reward", "group_id"]).to_pydict()
        norm = self.config.adv_norm
        advantages = compute_advantages(
            torch.tensor(columns["reward"]),
            torch.tensor(columns["group_id"]),
            mean_level=norm.mean_level,
            std_level=norm.std_level,
            leave_one_out=norm.leave_one_out,
            normalize_by=norm.normalize_by,
        )
        finished = add_columns(table, self._path(step, "advantage"), {"advantage": advantages.tolist()})
        return finished, self.metrics(finished)

    def demonstrations(self, step: int) -> tuple[TableRef, Metrics]:
        """The finished table of given completions that iteration `step` imitates, and its metrics."""
        return self._demonstrations.write(step, self._path(step, "advantage"))

    def metrics(self, table: TableRef) -> Metrics:
        """Metrics of a finished sample table."""
        return sample_metrics(
            read_table(table),
            group_size=self.config.rollout.group_size,
            max_completion_tokens=self.config.rollout.max_completion_tokens,
        )

    def evaluation_requests(self, mode: Mode) -> list[SampleRequest]:
        """The evaluation samples of one mode."""
        return self._requests(self.problems.evaluation, _EVALUATION_STEP, self._evaluation_samples(mode))

    def write_evaluation(
        self, step: int, policy_version: int, modes: Sequence[Mode], *parts: list[Completion]
    ) -> TableRef:
        """Grade the evaluation's completions and write their table, `mode` telling greedy from sampled.

        `parts` are the engines' shares of the first mode, then those of the next.
        """
        merged: dict[str, list[Any]] = {}
        num_engines = len(parts) // len(modes)
        for index, mode in enumerate(modes):
            shares = parts[index * num_engines : (index + 1) * num_engines]
            sampled = [completion for share in shares for completion in share]
            columns = self._columns(
                self.problems.evaluation,
                sampled,
                step=step,
                policy_version=policy_version,
                samples=self._evaluation_samples(mode),
                seed_step=_EVALUATION_STEP,
            )
            columns |= self._reward_columns(columns) | {"mode": [mode] * len(sampled)}
            for name, values in columns.items():
                merged.setdefault(name, []).extend(values)
        return write_table(self.run_dir / "evaluations" / f"{step:06d}.parquet", merged)

    def close(self) -> None:
        """Stop the graders."""
        self.pool.close()

    @cached_property
    def _demonstrations(self) -> Demonstrations:
        return Demonstrations(self.config, self.problems, self.tokenizer, self.run_id)

    def _evaluation_samples(self, mode: Mode) -> int:
        return 1 if mode == "greedy" else self.config.evaluation.samples_per_problem

    def _requests(self, problems: Sequence[TokenizedProblem], step: int, samples: int) -> list[SampleRequest]:
        return [
            SampleRequest(list(problem.prompt_ids), sample_seed(self.config.seed, step, problem.id, index))
            for problem in problems
            for index in range(samples)
        ]

    def _columns(
        self,
        problems: Sequence[TokenizedProblem],
        completions: Sequence[Completion],
        *,
        step: int,
        policy_version: int,
        samples: int,
        seed_step: int,
    ) -> dict[str, list[Any]]:
        origin = [(group, problem, i) for group, problem in enumerate(problems) for i in range(samples)]
        texts = self.tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
        columns: dict[str, list[Any]] = {
            "run_id": [self.run_id] * len(completions),
            "step": [step] * len(completions),
            "policy_version": [policy_version] * len(completions),
            "problem_id": [problem.id for _, problem, _ in origin],
            "group_id": [group for group, _, _ in origin],
            "sample_index": [index for _, _, index in origin],
            "seed": [sample_seed(self.config.seed, seed_step, problem.id, index) for _, problem, index in origin],
            "question": [problem.problem.question for _, problem, _ in origin],
            "answer": [problem.problem.answer for _, problem, _ in origin],
            "columns": [_as_json(problem.problem.columns) for _, problem, _ in origin],
            "prompt": [problem.prompt for _, problem, _ in origin],
            "prompt_ids": [list(problem.prompt_ids) for _, problem, _ in origin],
            "completion": texts,
            "completion_ids": [completion.token_ids for completion in completions],
            "finish_reason": [completion.finish_reason for completion in completions],
        }
        if completions and completions[0].logprobs is not None:
            columns["sampler_logprobs"] = [completion.logprobs for completion in completions]
        return columns

    def _reward_columns(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        grades = self.pool.grade(
            [
                GradeItem(completion, answer, question, json.loads(columns))
                for completion, answer, question, columns in zip(
                    rows["completion"], rows["answer"], rows["question"], rows["columns"], strict=True
                )
            ]
        )
        names = list(self.config.reward.functions)
        truncated = [reason == "length" for reason in rows["finish_reason"]]
        scores = {name: [grade.per_function.get(name, 0.0) for grade in grades] for name in names}
        zero = self.config.reward.truncated_reward == "zero"
        return {
            "reward": self._shaped(grades, truncated, [len(ids) for ids in rows["completion_ids"]]),
            **{f"reward_{name}": values for name, values in scores.items()},
            # Accuracy is the first reward function's; a truncated completion is not an answer.
            "correct": [
                score == 1.0 and not (cut and zero) for score, cut in zip(scores[names[0]], truncated, strict=True)
            ],
            "grader_status": [grade.status for grade in grades],
            "grader_message": [grade.message for grade in grades],
        }

    def _shaped(self, grades: Sequence[Grade], truncated: Sequence[bool], lengths: Sequence[int]) -> list[float]:
        reward = self.config.reward
        raw = torch.tensor([grade.reward for grade in grades], dtype=torch.float64)
        if reward.truncated_reward == "zero":
            raw[torch.tensor(truncated, dtype=torch.bool)] = 0.0
        shaped = shape_rewards(raw, scaling=reward.scaling, bias=reward.bias, clip=reward.clip)
        if reward.overlong.enabled:
            shaped = shaped + overlong_penalty(
                torch.tensor(lengths),
                max_completion_tokens=self.config.rollout.max_completion_tokens,
                buffer_tokens=reward.overlong.buffer_tokens,
                penalty=reward.overlong.penalty,
            )
        result: list[float] = shaped.tolist()
        return result

    def _path(self, step: int, stage: str) -> Path:
        return self.run_dir / "steps" / f"{step:06d}" / f"{stage}.parquet"


def _as_json(columns: Mapping[str, Any]) -> str:
    """A row's further columns for the table, which has one type for each of its own; what JSON lacks becomes text."""
    return json.dumps(columns, default=str, skipkeys=True)
