"""The update alone: seconds and MFU of an iteration's optimizer steps under ZeRO-3, for several plans in one process.

python -m benchmarks.update --workload a --model DIRECTORY --out FILE --plan tokens=16384 --plan tokens=40960,recompute

A plan changes the tokens of a micro-batch, the share of the layers that recompute activations (`recompute`), whether
completions share a prompt (`share`), and the rows of logits that exist at once (`chunk`), and takes the kernels of
`trainer.deterministic` (`deterministic`); what it does not name is the workload's. `mfu` counts the tokens that are
computed, `effective_mfu` those of the sequences, a shared prompt once for each.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import enter_engine, hardware, versions
from benchmarks.options import Options, parse_options
from benchmarks.profile import profile
from benchmarks.workloads import WORKLOADS
from drgrpo.config import TrainConfig

if TYPE_CHECKING:
    from drgrpo.trainer.batch import Sample
    from drgrpo.trainer.trainer import Trainer

PROMPT_TOKENS = 110


def samples(config: TrainConfig, *, vocab_size: int) -> "list[Sample]":
    """Made-up groups with the workload's lengths and nonzero advantages."""
    from drgrpo.trainer.batch import Sample

    rng = random.Random(0)
    lengths = config.rollout.forced_lengths or [config.rollout.max_completion_tokens]

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, vocab_size) for _ in range(count)]

    num_prompt_tokens = min(PROMPT_TOKENS, config.data.max_prompt_tokens)
    prompts = [tokens(num_prompt_tokens) for _ in range(config.data.prompts_per_step)]
    size = config.rollout.group_size
    return [
        Sample(n // size, prompts[n // size], tokens(lengths[n % len(lengths)]), 0.5 if n % 2 else -0.5)
        for n in range(config.completions_per_step)
    ]


def set_plan(trainer: "Trainer", config: TrainConfig, plan: Options) -> None:
    """Change the micro-batch budget, sharing of prompts, recomputation and the head's chunk of a built trainer."""
    import torch

    wanted = config.trainer
    torch.use_deterministic_algorithms(bool(plan.get("deterministic", wanted.deterministic)))
    tokens = int(plan.get("tokens", wanted.tokens_per_microbatch))
    shares = bool(plan.get("share", wanted.share_prompts))
    changes = {"tokens_per_microbatch": tokens, "share_prompts": shares}
    trainer.microbatches.config = config.model_copy(update={"trainer": wanted.model_copy(update=changes)})
    policy = trainer.engine.module
    policy.head.chunk_tokens = int(plan.get("chunk", wanted.logprob_chunk_tokens))
    policy.set_checkpointing(float(plan.get("recompute", wanted.gradient_checkpointing)))


def measure(trainer: "Trainer", batch: "list[Sample]", *, repeats: int) -> dict[str, Any]:
    """Seconds of each repeat after one warm-up, tokens per second, MFU, memory; null where there is no GPU.

    `allocator_flushes`: how often torch found no room after the warm-up and gave back all memory that it kept.
    """
    import torch

    from benchmarks.clock import now
    from drgrpo.trainer.flops import peak_flops, utilisation
    from drgrpo.trainer.weights import named_weights, parameter_numel

    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    flushes: list[int] = []
    for step in range(repeats + 1):
        started = now()
        metrics = trainer.update(batch, step=step)
        seconds.append(now() - started)
        flushes.append(torch.cuda.memory_stats()["num_alloc_retries"] if on_gpu else 0)
    best = min(seconds[1:])
    parameters = sum(parameter_numel(p) for _, p in named_weights(trainer.engine))
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None

    def mfu(num_tokens: float) -> float | None:
        tokens = int(num_tokens)
        return peak and utilisation(num_parameters=parameters, num_tokens=tokens, seconds=best, peak=peak)

    return {
        "seconds": seconds,
        "trained_tokens": int(metrics["trained_tokens"]),
        "sequence_tokens": int(metrics["sequence_tokens"]),
        "computed_tokens": int(metrics["computed_tokens"]),
        "tokens_per_s": metrics["sequence_tokens"] / best,
        "mfu": mfu(metrics["computed_tokens"]),
        "effective_mfu": mfu(metrics["sequence_tokens"]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "allocator_flushes": flushes[-1] - flushes[0] if on_gpu else None,
    }


def build_trainer(config: TrainConfig, *, on_gpu: bool) -> "Trainer":
    """One rank on this machine's GPU or CPU, whose layers can be switched to recompute."""
    import torch

    from benchmarks.services import free_port
    from drgrpo.trainer.trainer import Trainer
    from drgrpo.trainer.zero import init_process_group

    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    init_process_group(0, 1, "127.0.0.1", free_port(), device)
    trainer = Trainer(config, Path(config.model.path), rank=0, world_size=1, device=device)
    trainer.engine.module.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    return trainer


def main() -> None:
    """Measure every plan and write the JSON after each, so that a later failure loses nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--gib", type=float, help="memory of the GPU that torch may take, as beside a sampler")
    parser.add_argument("--profile", action="store_true", help="profile the last plan")
    options = parser.parse_args()

    workload = WORKLOADS[options.workload]
    config = TrainConfig.model_validate(workload.config(options.model, Path(tempfile.gettempdir())))
    # cuBLAS reads its part of the setting once, so all plans of one call share that part.
    asked = any("deterministic" in parse_options(text) for text in options.plan)
    deterministic = config.trainer.model_copy(update={"deterministic": asked})
    on_gpu = enter_engine(config.model_copy(update={"trainer": deterministic}), "trainer")
    import torch

    if options.gib and on_gpu:
        torch.cuda.set_per_process_memory_fraction(options.gib * 2**30 / torch.cuda.mem_get_info()[1])
    trainer = build_trainer(config, on_gpu=on_gpu)
    batch = samples(config, vocab_size=trainer.engine.module.decoder.config.vocab_size)
    results: dict[str, Any] = {"workload": options.workload, "hardware": hardware(), "versions": versions()}
    results["plans"] = plans = {}
    for text in options.plan or [""]:
        set_plan(trainer, config, parse_options(text))
        try:
            plans[text or "workload"] = measure(trainer, batch, repeats=options.repeats)
        except torch.OutOfMemoryError as error:
            plans[text or "workload"] = {"error": str(error)[:200]}
            trainer.engine.optimizer.zero_grad()
            torch.cuda.empty_cache()
        print(text or "workload", plans[text or "workload"], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.profile:
        options.out.with_suffix(".txt").write_text(profile(lambda: trainer.update(batch, step=0)))


if __name__ == "__main__":
    main()
