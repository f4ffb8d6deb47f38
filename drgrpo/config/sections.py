"""The sections of a training configuration: everything that changes the numbers, described and bounded.

Defaults are the paper's (arXiv 2503.20783, released scripts). What changes only the machine lives in `drgrpo.settings`.
Optional values use an empty string or 0 rather than null, because the Prefect UI draws a plain field for them.
"""

from typing import Annotated, Literal

from pydantic import Field

from drgrpo.config.section import Section

Level = Literal["group", "batch", "none"]


class ModelConfig(Section):
    """The policy's initial weights."""

    path: str = Field(
        "Qwen/Qwen2.5-1.5B-Instruct",
        min_length=1,
        description="Hub id, local directory, or the packaged name `smollm2`",
    )
    revision: str = Field("main", description="Hub revision; ignored for a local directory")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Compute type of trainer and sampler; master weights are always float32"
    )
    trust_remote_code: bool = Field(False, description="Run Python code that the model repository brings")


class DataConfig(Section):
    """Problems for training and evaluation, and how a prompt is made of one."""

    train: str = Field(
        "openai/gsm8k",
        min_length=1,
        description="Hub id, local JSONL or Parquet file or directory, or `reasoning_gym:<name>`",
    )
    train_split: str = Field("train", description="Split of a Hub dataset, or file stem in a local directory")
    eval: str = Field(
        "openai/gsm8k", min_length=1, description="Source of the held-out problems, in the same forms as `train`"
    )
    eval_split: str = Field("test", description="Split of the held-out problems; training never reads it")
    subset: str = Field("main", description="Configuration name of a Hub dataset; ignored elsewhere")
    question_field: str = Field(
        "question", description="Column that holds the question; `a.b` reaches into a nested one"
    )
    answer_field: str = Field(
        "answer", description="Column that holds the reference answer; `a.b` reaches into a nested one"
    )
    completion_field: str = Field(
        "", description="Column of the completion that supervised training imitates; empty: that of the answer"
    )
    strip_annotations: bool = Field(
        False, description="Remove GSM8K's calculator annotations, `<<48/2=24>>`, from those completions"
    )
    num_train_problems: int = Field(
        0, ge=0, description="Use only the first n training problems; 0 means all (required for reasoning_gym)"
    )
    generator_options: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="Options of the reasoning_gym generator, for both splits"
    )
    prompt_style: Literal["chat", "plain", "r1", "qwen_math"] = Field(
        "chat", description="How a question becomes a prompt"
    )
    system_prompt: str = Field(
        "", description="System message of the chat style; empty passes none (a template may insert its own)"
    )
    prompt_template: str = Field("{question}", description="Text around the question; `{question}` marks its place")
    max_prompt_tokens: int = Field(1024, ge=1, description="Problems with longer prompts are dropped and counted")
    prompts_per_step: int = Field(128, ge=1, description="Problems sampled at each iteration")


class RolloutConfig(Section):
    """Sampling with vLLM."""

    group_size: int = Field(8, ge=1, le=1024, description="Completions per prompt, G")
    max_completion_tokens: int = Field(
        1024, ge=1, description="Completion limit, also the constant divisor L of the loss"
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="Sampling temperature; the trainer's logits are divided by it too"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; below 1 the importance ratio is biased")
    top_k: int = Field(-1, ge=-1, description="Top-k sampling; -1 switches it off")
    stop: list[str] = Field(
        default_factory=list, description="Stop strings, kept in the completion; the r1 style adds `</answer>`"
    )
    ignore_eos: bool = Field(False, description="Sample to the limit whatever comes; for benchmarks")
    forced_lengths: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        description="Benchmarks: sample i of a step is cut after forced_lengths[i mod n] tokens; needs ignore_eos",
    )
    sampler_logprobs: bool = Field(False, description="Record the sampler's logprobs (about 30 % slower on a GPU)")
    max_num_seqs: int = Field(1024, ge=1, description="Sequences that vLLM decodes at once")
    gpu_memory_utilization: float = Field(0.45, gt=0, lt=1, description="Share of device memory for the sampler")
    kv_cache_gib: float = Field(
        0.0,
        ge=0,
        description="KV cache on a GPU, in GiB; 0: what the share above leaves, measured with the GPU to itself",
    )
    enforce_eager: bool = Field(False, description="Run vLLM without CUDA graphs")
    prefix_caching: bool = Field(True, description="Share the KV cache of equal prompts")


class OverlongConfig(Section):
    """DAPO's soft penalty for long completions (arXiv 2503.14476, eq. 13)."""

    enabled: bool = Field(False, description="Subtract the penalty from the reward")
    buffer_tokens: int = Field(
        128, ge=1, description="The penalty grows linearly over the last n tokens before the limit"
    )
    penalty: float = Field(1.0, ge=0, description="Penalty at the limit")


class RewardConfig(Section):
    """How a completion becomes a reward."""

    functions: dict[str, float] = Field(
        default_factory=lambda: {"gsm8k": 1.0},
        min_length=1,
        description="Reward function (`gsm8k`, `math`, `number`, `format`, or a dotted path) to weight; the first one "
        "decides what counts as correct",
    )
    answer_mode: Literal["strict", "lenient"] = Field(
        "strict", description="strict: the marked answer (`####`, `\\boxed{}`); lenient: the last number of the text"
    )
    timeout_s: float = Field(
        5.0, gt=0, le=600, description="Time limit per completion; a grader over it is killed and the sample scores 0"
    )
    max_failed_share: float = Field(
        0.5, ge=0, le=1, description="Share of completions that may time out or fail in the grader; beyond it, stop"
    )
    num_workers: int = Field(2, ge=1, le=256, description="Grader processes")
    truncated_reward: Literal["zero", "keep"] = Field("zero", description="Reward of a completion cut at the limit")
    scaling: float = Field(1.0, description="Reward is (reward + bias) * scaling, then clipped")
    bias: float = Field(0.0, description="Added before scaling")
    clip: float = Field(0.0, ge=0, description="Clip to [-clip, clip]; 0 switches it off")
    overlong: OverlongConfig = Field(default_factory=OverlongConfig, description="Soft penalty for long completions")


class AdvNormConfig(Section):
    """Rewards to advantages. Dr. GRPO is mean_level=group, std_level=none."""

    mean_level: Level = Field("group", description="Level of the mean that is subtracted")
    std_level: Level = Field("none", description="Level of the divisor; group is GRPO")
    leave_one_out: bool = Field(False, description="RLOO: leave the sample itself out of its mean")
    normalize_by: Literal["std", "mean"] = Field(
        "std", description="Divisor at std_level: standard deviation, or mean (MaxRL)"
    )


class LossConfig(Section):
    """The clipped surrogate and its optional terms."""

    aggregation: Literal["constant", "sequence_mean", "token_mean"] = Field(
        "constant", description="constant: divide by N*L (Dr. GRPO); sequence_mean: GRPO; token_mean: DAPO"
    )
    clip_eps_low: float = Field(0.2, ge=0, le=1, description="Ratio is clipped below 1 - eps_low")
    clip_eps_high: float = Field(0.2, ge=0, description="Ratio is clipped above 1 + eps_high")
    correction: Literal["off", "token_tis", "sequence_tis", "token_mask", "sequence_mask"] = Field(
        "off", description="Correction of the sampler/trainer mismatch"
    )
    correction_cap: float = Field(2.0, gt=0, description="Cap C of the correction")
    kl_coef: float = Field(
        0.0, ge=0, description="Weight of the KL term against the initial policy; 0 loads no reference"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of the KL term")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus")


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, ge=0, le=1, description="Peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay")
    grad_clip: float = Field(1.0, ge=0, description="Global gradient norm is clipped to this; 0 switches it off")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Decay after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Final learning rate as a share of the peak")


class TrainerConfig(Section):
    """The update under ZeRO-3."""

    num_ranks: int = Field(1, ge=1, description="Trainer ranks, a GPU each")
    completions_per_update: int = Field(
        128, ge=1, description="Completions N of one optimizer step; prompts_per_step * group_size must be a multiple"
    )
    tokens_per_microbatch: int = Field(
        16384, ge=16, description="Token budget of one packed micro-batch; a longer sequence gets one of its own"
    )
    logprob_chunk_tokens: int = Field(
        2048, ge=1, description="Rows of logits that exist at once; a micro-batch computes all but its last ones twice"
    )
    share_prompts: bool = Field(True, description="Compute the prompt of a group once per micro-batch")
    gradient_checkpointing: float = Field(
        0.0, ge=0, le=1, description="Share of the decoder's layers that recompute activations in the backward pass"
    )
    offload_optimizer: bool = Field(False, description="Keep optimizer state in host memory")
    deterministic: bool = Field(
        False, description="Deterministic kernels on a GPU, the sampler's too; CPU runs always are"
    )
    max_skipped_updates: int = Field(
        3, ge=0, description="Optimizer steps in a row that are skipped for a gradient that is not finite, then stop"
    )


class EvaluationConfig(Section):
    """Held-out evaluation."""

    every_steps: int = Field(
        16, ge=0, description="Cadence in iterations, besides step 0 and the end; 0: only those two"
    )
    num_problems: int = Field(
        0, ge=0, description="Fixed subset of the held-out split; 0 means all (required for reasoning_gym)"
    )
    samples_per_problem: int = Field(4, ge=1, le=1024, description="k of avg@k and pass@k at the training temperature")
    greedy: bool = Field(True, description="Greedy pass@1 besides")
    max_completion_tokens: int = Field(0, ge=0, description="Completion limit; 0 means the rollout's")
    num_shown: int = Field(8, ge=0, description="Samples in the readable table")


class CheckpointConfig(Section):
    """What a run leaves on disk."""

    every_steps: int = Field(0, ge=0, description="Cadence in iterations, and at the end; 0: by time")
    every_minutes: float = Field(
        30.0, ge=0, description="Cadence in minutes; both 0: none, an interrupted run is replayed from its start"
    )
    keep_last: int = Field(
        2, ge=1, description="Checkpoints kept, besides the one that evaluated best, which every cadence saves"
    )
    export: bool = Field(True, description="Write the final policy as a Hugging Face directory")

    @property
    def has_cadence(self) -> bool:
        """Whether checkpoints are taken, by steps or by minutes."""
        return self.every_steps > 0 or self.every_minutes > 0


class PlacementConfig(Section):
    """Which devices the engines use."""

    num_rollout_engines: int = Field(
        1, ge=1, description="vLLM engines (data parallel), each on the device of a trainer rank: at most num_ranks"
    )
    sleep: bool = Field(False, description="vLLM frees device memory during the update (GPU)")
