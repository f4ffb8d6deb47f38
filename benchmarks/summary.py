"""The summary of a workload: our step beside each peer's best, from the results of the parts that were measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.limits import bounds

Result = Mapping[str, Any]

_PEER_STAGES = ("generation", "scoring", "update", "sync")


def summarize(workload: str, results: Mapping[str, Result], outcomes: Mapping[str, Result]) -> dict[str, Any]:
    """The summary; what no part has measured is null.

    Args:
        workload: Its name.
        results: What the parts wrote, by name: `step`, `rollout`, `rollout sleep`, `update`, `<peer> <variant>`.
        outcomes: How each part ended, by name.

    `ratio_to_<peer>` is the median iteration of the peer's fastest variant over our median step; a first step warms up
    and does not count. An iteration is one rollout with all of its optimizer steps, on both sides. `update_mfu` counts
    the tokens that are computed, `update_effective_mfu` those of the sequences, as if no prompt were shared.
    """
    ours = own_step(results["step"]) if "step" in results else dict.fromkeys(_OWN)
    first = next(iter(results.values()), {})
    alone = {
        setting: measured
        for name in ("rollout", "rollout sleep")
        for setting, measured in results.get(name, {}).get("settings", {}).items()
    }
    return {
        "workload": workload,
        "hardware": first.get("hardware"),
        "versions": first.get("versions"),
        **_against("trl", results, ours["step_s"]),
        **_against("openrlhf", results, ours["step_s"]),
        **ours,
        "sleep_wake_s": ours["sleep_wake_s"] or _slept_alone(alone),
        "rollout_alone": alone or None,
        "update_alone": results.get("update", {}).get("plans"),
        "parts": dict(outcomes),
    }


_OWN = (
    "step_s",
    "rollout_tokens_per_s",
    "update_mfu",
    "update_effective_mfu",
    "push_s",
    "sleep_wake_s",
    "orchestration_share",
    "trained_tokens",
    "skipped_groups",
    "stages",
    "stage_shares",
    "bounds",
    "step_seconds",
    "config",
)


def own_step(result: Result) -> dict[str, Any]:
    """The figures of a result of `benchmarks.step`."""
    median, steps = result["median"], result["steps"]
    sleeps = [name for name in ("busy/RolloutEngine.sleep", "busy/RolloutEngine.wake_up") if name in median]
    num_groups, stages = result["config"]["data"]["prompts_per_step"], own_stages(median)
    mfu = median.get("update/mfu")
    figures = {
        "step_s": median["account/step"],
        "rollout_tokens_per_s": median["rollout/tokens_per_s"],
        "update_mfu": mfu,
        "update_effective_mfu": mfu and mfu * median["update/sequence_tokens"] / median["update/computed_tokens"],
        "push_s": median["engine_seconds/push"],
        "sleep_wake_s": sum(median[name] for name in sleeps) if sleeps else None,
        "orchestration_share": median["account/orchestration_share"],
        "trained_tokens": int(median["update/trained_tokens"]),
        "skipped_groups": int(max(num_groups - step["advantage/trained_groups"] for step in steps)),
        "stages": stages,
        "stage_shares": {name: seconds / median["account/step"] for name, seconds in stages.items()},
        "bounds": bounds(result),
        "step_seconds": [step["account/step"] for step in steps],
        "config": result["config"],
    }
    return {name: figures[name] for name in _OWN}


def own_stages(median: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a step of one rank and one sampler by stage; they add up to the step, as far as medians do.

    `check` is the rest of the engines' time: both score fixed tokens after the push.
    """
    stages = {
        "generation": median["busy/RolloutEngine.generate"],
        "update": median["busy/TrainerRank.update"],
        "sync": median["busy/TrainerRank.push"],
        "sleep": median.get("busy/RolloutEngine.sleep", 0.0) + median.get("busy/RolloutEngine.wake_up", 0.0),
    }
    check = median["account/engines"] - sum(stages.values())
    return stages | {"check": check, "orchestration": median["account/orchestration"]}


def _against(name: str, results: Mapping[str, Result], step_s: float | None) -> dict[str, Any]:
    """All variants of a peer, its fastest one, and the ratio of that to our step."""
    variants = {
        found.removeprefix(f"{name} "): peer(result)
        for found, result in results.items()
        if found.startswith(f"{name} ")
    }
    timed = {variant: figures["step_s"] for variant, figures in variants.items() if figures["step_s"] is not None}
    best = min(timed, key=timed.__getitem__) if timed else None
    return {
        f"ratio_to_{name}": timed[best] / step_s if best and step_s else None,
        f"{name}_step_s": timed[best] if best else None,
        f"{name}_best": best,
        name: variants,
    }


def peer(result: Result) -> dict[str, Any]:
    """A peer's figures: null seconds where no iteration came after the warm-up."""
    measured: Sequence[Mapping[str, float]] = result["iterations"][1:]
    return {
        "step_s": statistics.median(one["seconds"] for one in measured) if measured else None,
        "stages": {name: statistics.median(one[name] for one in measured) for name in _PEER_STAGES if measured},
        "step_seconds": [one["seconds"] for one in result["iterations"]],
        "prompt_tokens": [one["prompt_tokens"] for one in result["iterations"]],
        "completion_tokens": [one["completion_tokens"] for one in result["iterations"]],
        "config": result["config"],
    }


def _slept_alone(settings: Mapping[str, Result]) -> float | None:
    """Seconds of sleep and wake in the measurements of the sampler alone."""
    return next((s["sleep_wake_s"] for s in settings.values() if s.get("sleep_wake_s") is not None), None)
