"""What to try when a gate becomes true, by the names of the settings."""

REMEDIES = {
    "truncated_share": (
        "Raise `rollout.max_completion_tokens`, or switch on `reward.overlong.enabled`; where completions repeat "
        "themselves to the limit, lower `optimizer.lr`."
    ),
    "zero_variance_share": (
        "Most groups give no signal. All wrong: easier problems in `data.train`, or a graded reward in "
        "`reward.functions`. All right: harder problems. Both: raise `rollout.group_size` or `rollout.temperature`."
    ),
    "entropy": (
        "The policy hardly explores any more. Lower `optimizer.lr`, raise `loss.clip_eps_high` or "
        "`loss.entropy_coef`, or go back to an earlier state."
    ),
    "mismatch_kl": (
        "Sampler and trainer disagree about the same tokens. Set `model.dtype` to float32, or `loss.correction` to "
        "token_tis with `rollout.sampler_logprobs`; keep `rollout.top_p` at 1 and `rollout.top_k` at -1."
    ),
    "reward_drop": (
        "The policy got worse on held-out problems. Go back to an earlier state with a lower `optimizer.lr`, raise "
        "`trainer.completions_per_update`, or hold the policy near its start with `loss.kl_coef`."
    ),
    "grad_norm": (
        "Lower `optimizer.lr` or `optimizer.grad_clip`, raise `trainer.completions_per_update` or "
        "`optimizer.warmup_steps`; look at the step's sample table."
    ),
    "throughput_drop": (
        "Compare `seconds/` of the stages: a slow reward asks for more `reward.num_workers` or a lower "
        "`reward.timeout_s`, a slow rollout for more `rollout.gpu_memory_utilization`; look for other programs on the "
        "machine."
    ),
}
