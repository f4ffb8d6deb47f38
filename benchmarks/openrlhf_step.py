"""Another peer: seconds of a step of OpenRLHF's trainer with Dr. GRPO on a workload, for one variant of its settings.

python -m benchmarks.openrlhf_step --workload a --model DIRECTORY --data DIRECTORY --out FILE --variant liger,micro=8

vLLM and the trainer share one GPU, as OpenRLHF's `colocate_all` has it; sequences are packed. The variant's words:
`micro` (sequences of a micro-batch), `score` (of the scoring pass, which OpenRLHF always makes), `recompute` (gradient
checkpointing), `liger` (its kernels), `sleep` (vLLM sleeps during the update), `offload` (the optimizer's states on the
host during generation), `zero` (DeepSpeed's stage), `memory` (vLLM's share of the device instead of the workload's
cache), `stream` (vLLM hands over text token by token, as OpenRLHF has it; else tokens once, when a completion ends).

It needs `pip install --no-deps openrlhf==0.11.2 torchdata==0.11.0 pylatexenc==2.11 peft` beside what is here: OpenRLHF
asks for other versions of Ray, DeepSpeed, transformers and vLLM. A result counts only where its `trained_tokens` are
all completion tokens and its `optimizer_steps` those of the workload.
"""

import json
import os
import runpy
import sys
import tempfile
import time
from copy import copy
from itertools import cycle
from pathlib import Path
from typing import Any

import ray

from benchmarks.hash_reward import fraction
from benchmarks.machine import hardware, uses_gpu, versions
from benchmarks.openrlhf_patches import patched_strategy, stand_in, with_arguments
from benchmarks.options import Options, parse_options, workload_parser
from benchmarks.step import overridden
from benchmarks.workloads import WORKLOADS
from drgrpo.config import TrainConfig

SAMPLING = "OPENRLHF_STEP_SAMPLING"  # what OpenRLHF has no option for, as JSON in the environment
STAGES = {"generation": "generation", "scoring": "make_experience", "update": "ppo_train", "sync": "broadcast"}
CHECKS = ("trained_tokens", "optimizer_steps", "actor_grad_norm", "reward")


def openrlhf_settings(config: TrainConfig, variant: Options, *, num_steps: int, on_gpu: bool) -> dict[str, Any]:
    """Options of `openrlhf.cli.train_ppo_ray` for the same completions, optimizer steps and loss as `config`."""
    per_update, rollout = config.trainer.completions_per_update, config.rollout
    micro = min(int(variant.get("micro", 16)), per_update)
    return {
        "actor.num_gpus_per_node": 1,
        "vllm.num_engines": 1,
        "train.colocate_all": True,
        "data.apply_chat_template": config.data.prompt_style == "chat",
        "data.max_samples": num_steps * config.data.prompts_per_step,
        "data.max_len": config.max_model_len,
        "rollout.batch_size": config.data.prompts_per_step,
        "rollout.n_samples_per_prompt": rollout.group_size,
        "rollout.max_new_tokens": rollout.max_completion_tokens,
        "rollout.micro_batch_size": int(variant.get("score", micro)),
        "train.batch_size": per_update,
        "train.micro_batch_size": micro,
        "algo.advantage.estimator": "dr_grpo",
        "algo.kl.init_coef": 0,
        "actor.lr_scheduler": "constant",
        "actor.lr_warmup_ratio": 0,
        "actor.max_norm": config.optimizer.grad_clip,
        "actor.adam.lr": config.optimizer.lr,
        "actor.adam.betas": [config.optimizer.beta1, config.optimizer.beta2],
        "actor.gradient_checkpointing_enable": "recompute" in variant,
        "ds.packing_samples": True,  # with train.dynamic_batch_enable only the last micro-batch would count
        "ds.zero_stage": int(variant.get("zero", 2)),
        "ds.use_liger_kernel": "liger" in variant,
        "ds.enable_sleep": "offload" in variant,
        "vllm.enable_prefix_caching": True,
        "vllm.enable_sleep": "sleep" in variant,
        "vllm.enforce_eager": not on_gpu,
        "vllm.gpu_memory_utilization": variant.get("memory", 0.3),
    }


def command_line(settings: dict[str, Any]) -> list[str]:
    """`settings` as OpenRLHF's parser takes them: a flag where true, nothing where false."""
    given = {name: value for name, value in settings.items() if value is not False}
    lists = {name: value if isinstance(value, list) else [value] * (value is not True) for name, value in given.items()}
    return [word for name, values in lists.items() for word in (f"--{name}", *map(str, values))]


def executor() -> type:
    """OpenRLHF's sampling of one completion with our reward, a length that is given, and no early end."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    sampling = json.loads(os.environ[SAMPLING])
    lengths = cycle(sampling["lengths"])

    class AgentExecutor(SingleTurnAgentExecutor):
        async def execute(self, *, sampling_params: Any, hf_tokenizer: Any, **rest: Any) -> dict[str, Any]:
            parameters = copy(sampling_params)
            parameters.ignore_eos, parameters.max_tokens = sampling["ignore_eos"], next(lengths)
            if not sampling["stream"]:
                parameters.detokenize, parameters.output_kind = False, type(parameters.output_kind).FINAL_ONLY
            output = await super().execute(sampling_params=parameters, hf_tokenizer=hf_tokenizer, **rest)
            ((start, end),) = output["action_ranges"]
            text = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=True)
            return {**output, "reward": fraction(text), "scores": fraction(text)}

    return AgentExecutor


def timed_trainer(original: type, out: Path, result: dict[str, Any]) -> type:
    """OpenRLHF's trainer; writes the seconds and tokens of all steps so far to `out` after each of them."""

    class TimedTrainer(original):
        def fit(self, *args: Any) -> None:
            self.finished: list[dict[str, float]] = []
            self.ended = time.perf_counter()
            super().fit(*args)

        def train_step(self, samples: Any, step: int) -> Any:
            total = sum(int(sample.total_length.sum()) for sample in samples)
            completions = sum(int(sample.action_mask.sum()) for sample in samples)
            self.tokens = {"prompt_tokens": total - completions, "completion_tokens": completions}
            return super().train_step(samples, step)

        def save_logs_and_checkpoints(self, step: int, logs_dict: Any = None, client_states: Any = None) -> None:
            seconds, self.ended = time.perf_counter() - self.ended, time.perf_counter()
            stages = {name: logs_dict[f"timing/{theirs}"] for name, theirs in STAGES.items()}
            self.finished.append({"seconds": seconds, **stages, **self.tokens, **{n: logs_dict[n] for n in CHECKS}})
            out.write_text(json.dumps(result | {"iterations": self.finished}, indent=1) + "\n")
            print("OpenRLHF", {name: round(value, 3) for name, value in self.finished[-1].items()}, flush=True)

    return TimedTrainer


def prepare(config: TrainConfig, variant: Options, folder: Path, *, on_gpu: bool) -> dict[str, Any]:
    """Set this process and Ray up; returns further options for OpenRLHF."""
    lengths = config.rollout.forced_lengths or [config.rollout.max_completion_tokens]
    sampling = {"ignore_eos": config.rollout.ignore_eos, "lengths": lengths, "stream": "stream" in variant}
    agent = folder / "agent.py"
    agent.write_text("from benchmarks.openrlhf_step import executor\n\nAgentExecutor = executor()\n")
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent.parent), os.getenv("PYTHONPATH")]))
    os.environ |= {SAMPLING: json.dumps(sampling), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"  # as OpenRLHF sets it
    if not on_gpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    hook = {"worker_process_setup_hook": "benchmarks.openrlhf_patches.stand_in"}
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, runtime_env=hook)  # without a GPU one in name
    data = {"data.prompt_dataset": f"{config.data.train}/train.jsonl", "data.input_key": "question"}
    return {"actor.model_name_or_path": config.model.path, "train.agent_func_path": str(agent), **data}


def engine_arguments(config: TrainConfig, variant: Options, *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM gets beside OpenRLHF's arguments: our sampler's batch and cache."""
    batch = {"max_num_seqs": config.rollout.max_num_seqs}
    if not on_gpu:
        return batch | {"worker_extension_cls": "benchmarks.openrlhf_patches.CpuWorker"}
    cache = 0 if "memory" in variant else config.rollout.kv_cache_gib
    return batch | ({"kv_cache_memory_bytes": int(cache * 2**30)} if cache else {})


def measure(settings: dict[str, Any], engine: dict[str, Any], out: Path, result: dict[str, Any]) -> None:
    """Train through OpenRLHF's own command."""
    stand_in()
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ray import vllm_engine
    from openrlhf.utils import deepspeed

    original = ppo_trainer.PPOTrainer.__ray_metadata__.modified_class.__ray_actor_class__
    ppo_trainer.PPOTrainer = ray.remote(timed_trainer(original, out, result))
    vllm_engine.RolloutRayActor = with_arguments(vllm_engine.RolloutRayActor, engine)
    deepspeed.DeepspeedStrategy = patched_strategy(deepspeed.DeepspeedStrategy)
    sys.argv = ["train_ppo_ray", *command_line(settings)]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")


def main() -> None:
    """Train a few steps and write their times with OpenRLHF's options."""
    parser = workload_parser(__doc__)
    parser.add_argument("--variant", default="")
    parser.add_argument("--steps", type=int, default=3, help="rollouts; the first one warms up")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=JSON", help="values of the workload")
    options = parser.parse_args()

    sections = WORKLOADS[options.workload].config(options.model.resolve(), options.data.resolve())
    config = TrainConfig.model_validate(overridden(sections, options.set))
    variant, on_gpu = parse_options(options.variant), uses_gpu()
    settings = openrlhf_settings(config, variant, num_steps=options.steps, on_gpu=on_gpu)
    engine = engine_arguments(config, variant, on_gpu=on_gpu)
    shown = settings | {"engine": engine}
    result = {"workload": options.workload, "hardware": hardware(), "versions": versions(), "config": shown}
    with tempfile.TemporaryDirectory() as folder:
        places = prepare(config, variant, Path(folder), on_gpu=on_gpu)
        measure(settings | places, engine, options.out.resolve(), result)


if __name__ == "__main__":
    main()
