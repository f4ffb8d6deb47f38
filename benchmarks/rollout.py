"""The sampler alone: tokens per second of one iteration's rollout, and seconds to sleep and wake, without Ray.

python -m benchmarks.rollout --workload a --model DIRECTORY --data DIRECTORY --out FILE \\
  --setting max_num_seqs=512 --setting max_num_seqs=512,sampler_logprobs --setting max_num_seqs=256,sleep

A setting changes `max_num_seqs`, `gpu_memory_utilization` and `sampler_logprobs`; `sleep` builds the engine so that it
can sleep, `vllm_scheduler` leaves every step to vLLM's own scheduler, `decode_attention` decodes with the experiment of
that name. What it does not name is the workload's. Settings that differ in `sampler_logprobs` and `vllm_scheduler`
alone share an engine. A CPU cannot sleep: the seconds are null.
"""

import gc
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import enter_engine, hardware, versions
from benchmarks.options import Options, parse_options, workload_parser
from benchmarks.profile import profile
from benchmarks.workloads import WORKLOADS
from drgrpo.config import TrainConfig
from drgrpo.config.overrides import apply_overrides

if TYPE_CHECKING:
    from drgrpo.host import Host
    from drgrpo.rollout.engine import RolloutEngine


def configured(config: TrainConfig, setting: Options) -> TrainConfig:
    """The workload's configuration with a setting."""
    kinds = {"max_num_seqs": int, "gpu_memory_utilization": float, "sampler_logprobs": bool}
    values = {f"rollout.{name}": kind(setting[name]) for name, kind in kinds.items() if name in setting}
    return apply_overrides(config, values | {"placement.sleep": bool(setting.get("sleep", 0))})


def engine_key(config: TrainConfig) -> tuple[int, float, bool]:
    """Settings with the same key share an engine."""
    return config.rollout.max_num_seqs, config.rollout.gpu_memory_utilization, config.placement.sleep


def attention(setting: Options) -> AbstractContextManager[None]:
    """The attention that an engine of this setting is built with; the experiment's runs on a GPU alone."""
    if not setting.get("decode_attention"):
        return nullcontext()
    from benchmarks.decode_attention import installed

    return installed()


@contextmanager
def built_engine(config: TrainConfig, *, on_gpu: bool) -> "Iterator[RolloutEngine]":
    """An engine of this process, whose memory is free again after the block."""
    from drgrpo.rollout.engine import RolloutEngine  # vLLM has to come before any work of torch

    engine = RolloutEngine(config, Path(config.model.path), on_gpu=on_gpu)
    try:
        yield engine
    finally:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        engine.llm.llm_engine.engine_core.shutdown()
        del engine.llm
        gc.collect()
        cleanup_dist_env_and_memory()


def measure(engine: "RolloutEngine", host: "Host", *, repeats: int) -> dict[str, Any]:
    """Seconds of each rollout after a warm-up, tokens per second; each repeat samples other problems."""
    from benchmarks.clock import now

    seconds, tokens, longest = [], [], []
    for step in range(repeats + 1):
        requests, sampling = host.requests(step), host.sampling()
        engine.llm.reset_prefix_cache()
        started = now()
        completions = [c for c in engine.generate(requests, sampling, policy_version=0) if c]
        seconds.append(now() - started)
        tokens.append(sum(len(completion.token_ids) for completion in completions))
        longest.append(max(len(completion.token_ids) for completion in completions))
    speeds = [count / time for count, time in zip(tokens[1:], seconds[1:], strict=True)]
    return {
        "seconds": seconds,
        "completion_tokens": tokens,
        "longest_completion": longest,
        "tokens_per_s": statistics.median(speeds),
    }


def sleep_and_wake(engine: "RolloutEngine", *, repeats: int) -> list[dict[str, float]]:
    """Seconds of each sleep and of each wake."""
    from benchmarks.clock import now

    times = []
    for _ in range(repeats):
        started = now()
        engine.sleep()
        asleep = now()
        engine.wake_up()
        times.append({"sleep": asleep - started, "wake": now() - asleep})
    return times


def schedule_as_vllm(engine: "RolloutEngine", wanted: bool) -> None:
    """Whether vLLM's scheduler makes every step."""
    engine.llm.llm_engine.engine_core.engine_core.scheduler.as_vllm = wanted


def measure_engine(
    configs: Sequence[TrainConfig], settings: Sequence[Options], *, on_gpu: bool, repeats: int, profiled: Path | None
) -> Iterator[dict[str, Any]]:
    """The results of settings that share an engine; `profiled` gets a profile of one more rollout of the last."""
    built = built_engine(configs[0], on_gpu=on_gpu)
    with attention(settings[0]), built as engine, tempfile.TemporaryDirectory() as folder:
        from drgrpo.host import Host

        for config, setting in zip(configs, settings, strict=True):
            schedule_as_vllm(engine, bool(setting.get("vllm_scheduler", 0)))
            host = Host(config, config.model.path, "benchmark", folder)
            try:
                result = measure(engine, host, repeats=repeats)
                if profiled and config is configs[-1]:
                    requests, sampling = host.requests(repeats + 1), host.sampling()
                    profiled.write_text(profile(partial(engine.generate, requests, sampling, policy_version=0)))
            finally:
                host.close()
            sleeps = sleep_and_wake(engine, repeats=repeats + 1) if on_gpu and config.placement.sleep else None
            # The first one takes seconds longer, as the first of other repeats does.
            total = sleeps and statistics.median(time["sleep"] + time["wake"] for time in sleeps[1:])
            yield result | {"sleep_wake": sleeps, "sleep_wake_s": total}


def main() -> None:
    """Measure every setting and write the JSON after each engine, so that a later failure loses nothing."""
    parser = workload_parser(__doc__)
    parser.add_argument("--setting", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="profile the last setting of the last engine")
    options = parser.parse_args()
    profiled = options.out.with_suffix(".txt") if options.profile else None

    workload = WORKLOADS[options.workload]
    config = TrainConfig.model_validate(workload.config(options.model.resolve(), options.data.resolve()))
    on_gpu = enter_engine(config, "rollout")
    settings = {text or "workload": configured(config, parse_options(text)) for text in options.setting or [""]}
    results: dict[str, Any] = {"workload": options.workload, "hardware": hardware(), "versions": versions()}
    results |= {"config": workload.public(config.model_dump(mode="json")), "settings": {}}
    keys = {text: (*engine_key(settings[text]), parse_options(text).get("decode_attention", 0)) for text in settings}
    for _, group in itertools.groupby(sorted(settings, key=keys.__getitem__), key=keys.__getitem__):
        names = list(group)
        chosen = [settings[name] for name in names]
        parsed = [parse_options(name) if name in options.setting else {} for name in names]
        measured = measure_engine(chosen, parsed, on_gpu=on_gpu, repeats=options.repeats, profiled=profiled)
        try:
            for name, result in zip(names, measured, strict=True):
                results["settings"][name] = result
                print(f"{name:50s} {result['tokens_per_s']:12.0f} tokens/s", flush=True)
        except (RuntimeError, ValueError) as error:  # too little memory for this engine; the next may fit
            failed = {"error": f"{type(error).__name__}: {error}"[:300]}
            results["settings"] |= dict.fromkeys(set(names) - set(results["settings"]), failed)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
