"""An evaluation as accuracies with bootstrap intervals over problems, and paired differences between two of them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from drgrpo.metrics.samples import bools, length_metrics, present
from drgrpo.statistics import bootstrap_interval, paired_interval, pass_at_k

Score = Literal["greedy", "avg_at_k", "pass_at_k"]


@dataclass(frozen=True)
class EvaluationSummary:
    """Scores of one evaluation; plain dicts and numbers, so `EvaluationSummary(**json)` undoes `dataclasses.asdict`.

    Attributes:
        k: Samples per problem at the training temperature.
        scores: Score name (`greedy`, `avg_at_k`, `pass_at_k`) to problem id to the value in [0, 1]; only what was run.
        lengths: Completion lengths in tokens and the truncated share; of the sampled completions where there are any.
    """

    k: int
    scores: dict[str, dict[str, float]]
    lengths: dict[str, float]

    def interval(self, score: Score) -> tuple[float, float, float]:
        """Mean over problems and its 95 % bootstrap interval: (mean, low, high). Raises: KeyError when not run."""
        return bootstrap_interval(list(self.scores[score].values()))

    def metrics(self) -> dict[str, float]:
        """Flat metrics `evaluation/<score>`, `evaluation/<score>_low`, `evaluation/<score>_high`, and the lengths."""
        metrics = {"evaluation/k": float(self.k)}
        for score, values in self.scores.items():
            names = (f"evaluation/{score}{suffix}" for suffix in ("", "_low", "_high"))
            metrics.update(zip(names, bootstrap_interval(list(values.values())), strict=True))
            metrics["evaluation/num_problems"] = float(len(values))
        return metrics | {f"evaluation/{key.removeprefix('rollout/')}": value for key, value in self.lengths.items()}


def evaluation_metrics(table: pa.Table, *, k: int) -> EvaluationSummary:
    """Summary of an evaluation table: sample columns and `mode` (`greedy` or `sampled`).

    pass@k is the unbiased estimate (arXiv 2107.03374) over a problem's samples; a problem that lost some of its k is
    scored with those that exist.
    """
    sampled, greedy = (table.filter(pc.equal(table["mode"], mode)) for mode in ("sampled", "greedy"))
    outcomes = _outcomes(sampled)
    scores = {
        "greedy": {problem: _share(right) for problem, right in _outcomes(greedy).items()},
        "avg_at_k": {problem: _share(right) for problem, right in outcomes.items()},
        "pass_at_k": {p: pass_at_k(len(right), sum(right), min(k, len(right))) for p, right in outcomes.items()},
    }
    lengths = present(length_metrics(sampled if sampled.num_rows else greedy))
    return EvaluationSummary(k, {name: values for name, values in scores.items() if values}, lengths)


def paired_difference(
    before: EvaluationSummary, after: EvaluationSummary, score: Score = "avg_at_k"
) -> tuple[float, float, float]:
    """Mean of after - before over the problems of both and its 95 % bootstrap interval: (mean, low, high).

    Raises:
        ValueError: No problem is in both.
    """
    common = [problem for problem in before.scores[score] if problem in after.scores[score]]
    if not common:
        raise ValueError(f"the two evaluations share no problem with a {score} score: they are of different data")
    return paired_interval(_values(before, score, common), _values(after, score, common))


def _values(summary: EvaluationSummary, score: Score, problems: Iterable[str]) -> list[float]:
    return [summary.scores[score][problem] for problem in problems]


def _outcomes(table: pa.Table) -> dict[str, list[bool]]:
    """Problem id to whether each of its completions is right."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for problem, right in zip(table["problem_id"].to_pylist(), bools(table, "correct").tolist(), strict=True):
        outcomes[str(problem)].append(right)
    return outcomes


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)
