"""What of an AReaL configuration has no counterpart or another meaning here, and why. AReaL as of 2026-08-22."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Note:
    """A key (or `section.*`) of the AReaL file that was not carried, or was with another meaning; why."""

    key: str
    reason: str
    carried: bool = False


# Longest matching prefix wins.
NOT_CARRIED: dict[str, str] = {
    "experiment_name": "the MLflow experiment has the deployment's name",
    "trial_name": "a Prefect flow run has its own name",
    "tokenizer_path": "the tokenizer is the model's own",
    "enable_offload": "see trainer.offload_optimizer and placement.sleep",
    "total_train_n_seqs": "total_steps counts iterations",
    "cluster": "the machine is not part of a configuration: DRGRPO_RUNS_DIR, DRGRPO_RAY_ADDRESS",
    "scheduler": "Ray starts with the run, or DRGRPO_RAY_ADDRESS names a cluster",
    "rollout": "one rollout asks vLLM for a whole step at once; there are no queues, servers or agents to tune",
    "rollout.max_head_offpolicyness": "rollout and update alternate: no sample is older than the policy (0)",
    "rollout.dump_to_file": "the sample tables of every step are always kept",
    "dynamic_bs": "every step has data.prompts_per_step prompts",
    "gconfig": "no such sampling option",
    "gconfig.max_tokens": "the limits are data.max_prompt_tokens and rollout.max_completion_tokens",
    "gconfig.greedy": "training needs samples; evaluation.greedy is apart",
    "eval_gconfig": "evaluation samples at the training temperature, and greedily besides",
    "actor": "no counterpart",
    "actor.disable_dropout": "dropout is as the model's own configuration says",
    "actor.recompute_logprob": "old logprobs are always the trainer's",
    "actor.prox_logp_method": "old logprobs are always the trainer's",
    "actor.use_decoupled_loss": "old logprobs are the trainer's; loss.correction weights the sampler's mismatch",
    "actor.importance_sampling_level": "the ratio is per token",
    "actor.optimizer.type": "the optimizer is AdamW (AReaL's `adam`)",
    "actor.temperature": "the trainer takes rollout.temperature",
    "actor.max_new_tokens": "the limit is rollout.max_completion_tokens",
    "actor.weight_update_mode": "weights move by the transport that fits the placement",
    "actor.mb_spec": "micro-batches are packed by tokens alone",
    "actor.discount": "outcome rewards: every token of a completion has its advantage",
    "actor.gae_lambda": "outcome rewards: every token of a completion has its advantage",
    "actor.adv_norm": "would normalize again, over the batch's tokens, after actor.reward_norm; here it happens once",
    "actor.adv_norm.group_size": "groups are found by prompt",
    "actor.reward_norm.group_size": "groups are found by prompt",
    "actor.reward_norm.eps": "1e-8 is added to the standard deviation",
    "actor.adv_norm.eps": "1e-8 is added to the standard deviation",
    "actor.scheduling_spec": "Ray places ranks and engines",
    "actor.use_lora": "all parameters are trained",
    "critic": "there is no critic",
    "ref": "the reference is the initial policy, loaded when loss.kl_coef is above 0",
    "teacher": "there is no distillation",
    "sglang": "vLLM samples",
    "vllm": "follows from model, seed and token limits",
    "train_dataset": "problems are a function of seed and step; the order is always shuffled",
    "valid_dataset": "evaluation takes its size from evaluation.num_problems",
    "saver": "checkpoint.every_steps counts iterations",
    "evaluator": "evaluation.every_steps counts iterations; step 0 and the end are always evaluated",
    "recover": "checkpoint.every_steps counts iterations",
    "stats_logger": "metrics go to MLflow",
    "perf_tracer": "seconds per stage go to MLflow",
    "memory_profiler": "memory goes to MLflow",
}

# Named in every section of an AReaL file, and said once at the top.
REPEATED = ("experiment_name", "trial_name", "fileroot", "tokenizer_path")
# One row for the whole section would hide what was lost.
ROW_FOR_EACH_KEY = ("actor", "gconfig")
# Keys whose false or 0 says something: everywhere else an option that is off is not missed.
TELLING = ("train_dataset.shuffle", "rollout.dump_to_file")

DIFFERS: dict[str, str] = {
    "seed": "drives data order and sampling; in AReaL the order does not depend on it (2026-05-21)",
    "train_dataset.max_length": "limits the whole prompt with its template, in AReaL the user's text alone",
    "gconfig.max_new_tokens": "also the constant divisor of the loss",
    "actor.optimizer.lr": "was tuned on advantages that are normalized over the batch: tune it again (the paper: 1e-6)",
    "actor.reward_scaling": "scales advantages and gradient; in AReaL the later normalization cancels it",
    "evaluator.freq_epochs": "evaluation is greedy and at the training temperature; AReaL's example samples at 0.6",
}


def reason_of(key: str) -> tuple[str, str]:
    """(the longest known prefix of a key, why it is not carried)."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in NOT_CARRIED:
            return prefix, NOT_CARRIED[prefix]
    return key, "unknown to this converter"


def is_off(value: Any) -> bool:
    """True for a value that switches an option off."""
    return value in (None, False, 0, "", "disabled") or value == [] or value == {}


def notes_of(flat: Mapping[str, Any], used: set[str]) -> list[Note]:
    """Notes on the keys of a flat AReaL configuration, given those that were carried; one row for each prefix."""
    rows: dict[str, Note] = {}
    for key, value in flat.items():
        if key in used:
            if key in DIFFERS:
                rows[key] = Note(key, DIFFERS[key], carried=True)
        elif key.partition(".")[2] in REPEATED or (is_off(value) and key not in TELLING):
            continue
        else:
            prefix, reason = reason_of(key)
            shown = key if prefix in (key, *ROW_FOR_EACH_KEY) else f"{prefix}.*"
            rows.setdefault(shown, Note(shown, reason))
    return list(rows.values())
