"""The peer: seconds of a step of TRL's GRPOTrainer on a workload, for one variant of its settings.

python -m benchmarks.trl_step --workload a --model DIRECTORY --data DIRECTORY --out FILE --variant liger,micro=8

The variant's words: `liger` (its kernels), `recompute` (gradient checkpointing), `correction` (TRL's importance
sampling correction, with the scoring pass that it needs; on by default in TRL, while Dr. GRPO has none), `decode` (vLLM
makes text that TRL throws away, as it does by default), `sleep` (vLLM sleeps during the update), `micro` (sequences of
a micro-batch), `memory` (vLLM's share of the device).
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, uses_gpu, versions
from benchmarks.options import Options, parse_options, workload_parser
from benchmarks.services import free_port
from benchmarks.workloads import WORKLOADS
from drgrpo.config import TrainConfig


def trl_settings(config: TrainConfig, variant: Options, *, num_steps: int, on_gpu: bool) -> dict[str, Any]:
    """GRPOConfig of the same completions, optimizer steps and loss as `config`."""
    per_update, rollout = config.trainer.completions_per_update, config.rollout
    micro = min(int(variant.get("micro", 16)), per_update)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": per_update // micro,
        "steps_per_generation": config.completions_per_step // micro,
        "num_generations": rollout.group_size,
        "max_completion_length": rollout.max_completion_tokens,
        "max_steps": num_steps * config.updates_per_step,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
        "learning_rate": config.optimizer.lr,
        "adam_beta2": config.optimizer.beta2,
        "max_grad_norm": config.optimizer.grad_clip,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": "recompute" in variant,
        "use_liger_kernel": "liger" in variant,
        "vllm_importance_sampling_correction": "correction" in variant,
        "model_init_kwargs": {"dtype": "float32"},  # master weights; the compute type is autocast's
    }
    return settings | (_on_gpu(config, variant) if on_gpu else _on_cpu(config))


def _on_gpu(config: TrainConfig, variant: Options) -> dict[str, Any]:
    return {
        "bf16": config.model.dtype == "bfloat16",
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": variant.get("memory", 0.3),
        "vllm_max_model_length": config.max_model_len,
        "vllm_enable_sleep_mode": "sleep" in variant,
        "generation_kwargs": {"ignore_eos": config.rollout.ignore_eos, "detokenize": "decode" in variant},
    }


def _on_cpu(config: TrainConfig) -> dict[str, Any]:
    """transformers' own generation: it proves the harness, not a speed."""
    shortest = config.rollout.max_completion_tokens if config.rollout.ignore_eos else 0
    return {"use_cpu": True, "bf16": False, "use_vllm": False, "generation_kwargs": {"min_new_tokens": shortest}}


def measure(config: TrainConfig, settings: dict[str, Any], save: Callable[[list[dict[str, float]]], None]) -> None:
    """Train; `save` gets the seconds and tokens of all iterations so far after each of them."""
    from datasets import Dataset
    from trl import GRPOConfig

    from benchmarks.trl_trainer import Iterations, TimedTrainer, hash_rewards

    rows = [json.loads(line) for line in (Path(config.data.train) / "train.jsonl").read_text().splitlines()]
    chat = config.data.prompt_style == "chat"
    prompts = [[{"role": "user", "content": row["question"]}] if chat else row["question"] for row in rows]
    iterations = Iterations(config.updates_per_step, save)
    with tempfile.TemporaryDirectory() as folder:
        iterations.trainer = TimedTrainer(
            model=config.model.path,
            reward_funcs=hash_rewards,
            args=GRPOConfig(output_dir=folder, logging_steps=1, report_to="none", save_strategy="no", **settings),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            callbacks=[iterations],
            lengths=config.rollout.forced_lengths,
        )
        iterations.trainer.train()


def main() -> None:
    """Train a few steps and write their times with TRL's configuration."""
    parser = workload_parser(__doc__)
    parser.add_argument("--variant", default="")
    parser.add_argument("--steps", type=int, default=3, help="rollouts; the first one warms up")
    options = parser.parse_args()

    workload, on_gpu = WORKLOADS[options.workload], uses_gpu()
    config = TrainConfig.model_validate(workload.config(options.model.resolve(), options.data.resolve()))
    settings = trl_settings(config, parse_options(options.variant), num_steps=options.steps, on_gpu=on_gpu)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "HF_HUB_OFFLINE": "1", **address}
    result = {"workload": options.workload, "hardware": hardware(), "versions": versions(), "config": settings}

    def save(iterations: list[dict[str, float]]) -> None:
        options.out.write_text(json.dumps(result | {"iterations": iterations}, indent=1) + "\n")

    measure(config, settings, save)


if __name__ == "__main__":
    main()
