"""Numbers of one step, taken from its sample table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def sample_metrics(
    table: pa.Table, *, num_groups: int, group_size: int, max_completion_tokens: int
) -> dict[str, float]:
    """Metrics of a step's sample table; a number that the table has no samples for is left out, never NaN.

    Lengths are in tokens, shares in [0, 1]. The lengths of correct and of incorrect completions are of those that ended
    by themselves; truncated ones stand apart, because a cut length says nothing about the policy. Standard deviations
    are unbiased (n-1). `num_groups` groups of `group_size` samples were asked for: a sample without a row was lost, and
    a group with fewer rows, or none, is incomplete.
    """
    metrics: dict[str, float | None] = {
        **_reward_metrics(table),
        **length_metrics(table),
        **_group_metrics(table, num_groups, group_size),
        **_grader_metrics(table),
        **_advantage_metrics(table),
    }
    mean_length = metrics["completion_length/mean"]
    if mean_length is not None:
        metrics["completion_length/limit_share"] = mean_length / max_completion_tokens
    return present(metrics)


def length_metrics(table: pa.Table) -> dict[str, float | None]:
    """Completion lengths in tokens: all, correct, incorrect and truncated; None where there are no such samples."""
    lengths = pc.list_value_length(table["completion_ids"]).to_numpy().astype(np.float64)
    correct, truncated = bools(table, "correct"), is_truncated(table)
    return {
        "completion_length/mean": mean(lengths),
        "completion_length/correct": mean(lengths[correct & ~truncated]),
        "completion_length/incorrect": mean(lengths[~correct & ~truncated]),
        "completion_length/truncated": mean(lengths[truncated]),
        "completion_length/max": float(lengths.max()) if lengths.size else None,
        "rollout/completion_tokens": float(lengths.sum()),
        "rollout/truncated_share": mean(truncated),
    }


def is_truncated(table: pa.Table) -> Bools:
    """Which completions were cut at the limit, by `finish_reason`. Shape [num_rows]."""
    return np.array(table["finish_reason"].to_pylist(), dtype=object) == "length"


def bools(table: pa.Table, column: str) -> Bools:
    """A boolean column with null as False. Shape [num_rows]."""
    return pc.fill_null(table[column], False).to_numpy().astype(np.bool_)


def floats(table: pa.Table, column: str) -> Floats:
    """A numeric column with null as NaN. Shape [num_rows]."""
    return table[column].cast(pa.float64()).to_numpy()


def mean(values: npt.NDArray[Any]) -> float | None:
    """Arithmetic mean, None of nothing."""
    return float(values.mean()) if values.size else None


def present(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that have a value."""
    return {key: value for key, value in metrics.items() if value is not None}


def _reward_metrics(table: pa.Table) -> dict[str, float | None]:
    rewards = floats(table, "reward")
    functions = [name for name in table.column_names if name.startswith("reward_")]
    return {
        **{f"reward/{name.removeprefix('reward_')}": mean(floats(table, name)) for name in functions},
        "reward/mean": mean(rewards),
        "reward/std": float(rewards.std(ddof=1)) if rewards.size > 1 else None,
        "rollout/accuracy": mean(bools(table, "correct")),
    }


def _group_metrics(table: pa.Table, num_groups: int, group_size: int) -> dict[str, float | None]:
    group, sizes = _groups(table)
    right = np.bincount(group, weights=bools(table, "correct"), minlength=sizes.size)
    completions = list(zip(group.tolist(), table["completion"].to_pylist(), strict=True))
    return {
        "rollout/num_completions": float(len(completions)),
        "rollout/unique_share": len(set(completions)) / len(completions) if completions else None,
        "rollout/zero_variance_share": mean(_spread(floats(table, "reward"), group, sizes.size) == 0),
        "rollout/all_right_share": mean(right == sizes),
        "rollout/all_wrong_share": mean(right == 0),
        "rollout/incomplete_groups": float(num_groups - (sizes == group_size).sum()),
        "rollout/lost_samples": float(num_groups * group_size - len(completions)),
    }


def _grader_metrics(table: pa.Table) -> dict[str, float | None]:
    if "grader_status" not in table.column_names:
        return {}
    status = table["grader_status"].to_pylist()
    return {"grader/timeouts": float(status.count("timeout")), "grader/errors": float(status.count("error"))}


def _advantage_metrics(table: pa.Table) -> dict[str, float | None]:
    if "advantage" not in table.column_names:
        return {}
    advantages = floats(table, "advantage")
    trained = np.unique(_groups(table)[0][advantages != 0])
    return {"advantage/abs_mean": mean(np.abs(advantages)), "advantage/trained_groups": float(trained.size)}


def _groups(table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Index of each row's group [num_rows], and each group's size [num_groups]."""
    encoded = table["group_id"].combine_chunks().dictionary_encode()
    group = encoded.indices.to_numpy().astype(np.int64)
    return group, np.bincount(group, minlength=len(encoded.dictionary))


def _spread(values: Floats, group: npt.NDArray[np.int64], num_groups: int) -> Floats:
    """Largest minus smallest value of each group. Shape [num_groups]."""
    low, high = np.full(num_groups, np.inf), np.full(num_groups, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return high - low
