"""The CPU side of a run: chooses and tokenises problems, grades, computes advantages, writes the sample tables.

A table grows by stages: rollout.parquet, then reward.parquet, then advantage.parquet, each whole by itself. Updates are
replayed from the last, so that one alone is forced to disk. What the next stage waits for is handed over before it is
written: grading begins while the rollout's table is, and the trainer, after quick graders, while the other two are.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from transformers import AutoTokenizer

from drgrpo.advantage import compute_advantages
from drgrpo.config import TrainConfig
from drgrpo.data.problems import TokenizedProblem, sample_seed
from drgrpo.decoding import Decoder
from drgrpo.demonstrations import Demonstrations
from drgrpo.grader import Grader, Rewards
from drgrpo.metrics.samples import sample_metrics
from drgrpo.problems import load_run_problems
from drgrpo.rollout.rows import Row, answered, sample_columns
from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling
from drgrpo.tables import TableRef, as_table, list_values, read_table, save_table, with_columns, write_table
from drgrpo.trainer.samples import select_samples

Metrics = dict[str, float]
Mode = Literal["greedy", "sampled"]

# Evaluation samples have seeds of their own, the same at every step, so that differences are paired.
_EVALUATION_STEP = -1
_NUM_PROBES = 4
_PROBE_TOKENS = 32
_GRADED = ("completion", "answer", "question", "columns", "finish_reason")


class Host:
    """Everything between the engines. Holds no state that a restart would lose; without `train` it only evaluates."""

    def __init__(self, config: TrainConfig, model_path: str, run_id: str, run_dir: str, *, train: bool = True) -> None:
        self.config, self.run_id, self.run_dir = config, run_id, Path(run_dir)
        self._last: tuple[TableRef, pa.Table] | None = None
        self._grading: tuple[TableRef, Future[Rewards]] | None = None
        self.tokenizer = AutoTokenizer.from_pretrained(
            model_path, trust_remote_code=config.model.trust_remote_code, local_files_only=True
        )
        self._decoder = Decoder(self.tokenizer)
        self.problems = load_run_problems(config, self.tokenizer, train=train)
        self.grader = Grader(config)

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

    def write_rollout(
        self, step: int, policy_version: int, *parts: list[Completion | None], after: object = None
    ) -> TableRef:
        """Write the table of sampled completions; `parts` are the engines' shares in the order of `requests`.

        `after`: what has to have ended well before. A lost completion has no row. Raises RuntimeError when all were
        lost.
        """
        completions = list(chain.from_iterable(parts))
        rows = answered(self.problems.of_step(step), completions, samples=self.config.rollout.group_size)
        columns = self._columns(rows, step=step, policy_version=policy_version, seed_step=step)
        grading = self.grader.begin(columns)
        table = self._save(self._path(step, "rollout"), as_table(columns), durable=False)
        self._grading = table, grading
        return table

    def grade(self, table: TableRef) -> Rewards:
        """The reward columns of a rollout's table, whose grading has begun if it was written just now."""
        (begun, grading), self._grading = self._grading or (None, None), None
        if grading and begun == table:
            return grading.result()
        columns = self._read(table)
        rows = columns.select(_GRADED).to_pydict() | {"completion_ids": list_values(columns["completion_ids"])}
        return self.grader.rewards(rows)

    def samples(self, table: TableRef, rewards: Rewards | None = None) -> pa.Table:
        """What the trainer reads, advantages computed: of a rollout's table with these rewards, or of a graded one."""
        whole = self._read(table)
        norm = self.config.adv_norm
        advantages = compute_advantages(
            torch.tensor(rewards["reward"] if rewards else whole["reward"].to_pylist()),
            torch.tensor(whole["group_id"].to_pylist()),
            mean_level=norm.mean_level,
            std_level=norm.std_level,
            leave_one_out=norm.leave_one_out,
            normalize_by=norm.normalize_by,
        )
        return select_samples(with_columns(whole, {"advantage": advantages.tolist()}, path=table.path))

    def score(self, table: TableRef, rewards: Rewards, step: int) -> TableRef:
        """Write a rollout's table with its reward columns."""
        graded = with_columns(self._read(table), rewards, path=table.path)
        return self._save(self._path(step, "reward"), graded, source=table, durable=False)

    def advantages(self, table: TableRef, samples: pa.Table, step: int) -> tuple[TableRef, Metrics]:
        """Add the advantages of its `samples` to a graded table; returns the finished one and the step's metrics."""
        finished = with_columns(self._read(table), {"advantage": samples["advantage"].to_pylist()}, path=table.path)
        return self._save(self._path(step, "advantage"), finished, source=table), self.metrics(finished)

    def demonstrations(self, step: int) -> tuple[TableRef, Metrics]:
        """The finished table of given completions that iteration `step` imitates, and its metrics."""
        return self._demonstrations.write(step, self._path(step, "advantage"))

    def metrics(self, table: pa.Table) -> Metrics:
        """Metrics of a finished sample table."""
        return sample_metrics(
            table,
            num_groups=self.config.data.prompts_per_step,
            group_size=self.config.rollout.group_size,
            max_completion_tokens=self.config.rollout.max_completion_tokens,
        )

    def evaluation_requests(self, mode: Mode) -> list[SampleRequest]:
        """The evaluation samples of one mode."""
        return self._requests(self.problems.evaluation, _EVALUATION_STEP, self._evaluation_samples(mode))

    def write_evaluation(
        self, step: int, policy_version: int, modes: Sequence[Mode], *parts: list[Completion | None]
    ) -> TableRef:
        """Grade the evaluation's completions and write their table, `mode` telling greedy from sampled.

        `parts` are the engines' shares of the first mode, then those of the next. A lost completion has no row. Raises
        RuntimeError when all of a mode were lost.
        """
        merged: dict[str, list[Any]] = {}
        num_engines = len(parts) // len(modes)
        for index, mode in enumerate(modes):
            completions = list(chain.from_iterable(parts[index * num_engines : (index + 1) * num_engines]))
            rows = answered(self.problems.evaluation, completions, samples=self._evaluation_samples(mode))
            columns = self._columns(rows, step=step, policy_version=policy_version, seed_step=_EVALUATION_STEP)
            columns |= self.grader.rewards(columns) | {"mode": [mode] * len(rows)}
            for name, values in columns.items():
                merged.setdefault(name, []).extend(values)
        return write_table(self.run_dir / "evaluations" / f"{step:06d}.parquet", merged)

    def close(self) -> None:
        """Stop the graders."""
        self.grader.close()

    def _save(self, path: Path, table: pa.Table, *, source: TableRef | None = None, durable: bool = True) -> TableRef:
        """Write a stage's table, and keep it for the next stage, which is asked next."""
        ref = save_table(path, table, source=source, durable=durable)
        self._last = ref, table
        return ref

    def _read(self, ref: TableRef) -> pa.Table:
        """The table of a stage: as it was written, or from the disk after a restart."""
        return self._last[1] if self._last and self._last[0] == ref else read_table(ref)

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

    def _columns(self, rows: Sequence[Row], *, step: int, policy_version: int, seed_step: int) -> dict[str, list[Any]]:
        seeds = [sample_seed(self.config.seed, seed_step, row.problem.id, row.sample_index) for row in rows]
        about = {"run_id": self.run_id, "step": step, "policy_version": policy_version}
        return sample_columns(rows, self._decoder.texts, seeds=seeds, about=about)

    def _path(self, step: int, stage: str) -> Path:
        return self.run_dir / "steps" / f"{step:06d}" / f"{stage}.parquet"
