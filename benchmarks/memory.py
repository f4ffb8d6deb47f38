"""The tables of docs/memory.md: what fits on a GPU, by `drgrpo.config.device_memory`, and what was measured.

python -m benchmarks.memory docs/memory.md      # rewrites the part between the markers
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.options import parse_options
from deployments.steps import load_deployment
from drgrpo.config import TrainConfig
from drgrpo.config.device_memory import (
    GIB,
    OVERHEAD_BYTES,
    SAMPLER_WORK_BYTES,
    ModelShape,
    compute_bytes,
    kv_bytes,
    trainer_bytes,
)
from drgrpo.config.machine import host_bytes
from drgrpo.config.overrides import apply_overrides

BEGIN, END = "<!-- memory: generated -->", "<!-- /memory -->"
RESULTS = Path(__file__).parent / "results"
MEASURED = (RESULTS / "h100-update-fused-a.json", RESULTS / "h100-update-fused-b.json")
MEASURED_MODEL = "Qwen2.5-1.5B"

# Parameters, hidden, intermediate, layers, vocabulary, widths of keys and queries: from the models' own config.json.
MODELS = {
    "SmolLM2-135M": ModelShape(134_515_008, 576, 1536, 30, 49152, 3 * 64, 9 * 64),
    "Qwen2.5-0.5B": ModelShape(494_032_768, 896, 4864, 24, 151936, 2 * 64, 896),
    "Qwen2.5-1.5B": ModelShape(1_543_714_304, 1536, 8960, 28, 151936, 2 * 128, 1536),
    "Qwen2.5-3B": ModelShape(3_085_938_688, 2048, 11008, 36, 151936, 2 * 128, 2048),
    "Qwen2.5-7B": ModelShape(7_615_616_512, 3584, 18944, 28, 152064, 4 * 128, 3584),
}
# GiB that the smaller cards of a size have, and the deployment whose settings are used.
DEVICES = {"24 GB": (22.5, "gsm8k-24gb"), "48 GB": (45.0, "gsm8k-24gb"), "80 GB": (79.6, "gsm8k")}

# Assumed: a KV cache for 64 sequences of 1,024 tokens.
KV_TOKENS = 64 * 1024


def sampler_share(config: TrainConfig, shape: ModelShape, device_gib: float) -> float:
    """The largest `rollout.gpu_memory_utilization` beside the trainer, in steps of 0.05; 0: no room for the sampler."""
    left = device_gib * GIB - OVERHEAD_BYTES - trainer_bytes(config, shape)
    needed = compute_bytes(config) * shape.num_parameters + SAMPLER_WORK_BYTES + KV_TOKENS * kv_bytes(config, shape)
    share = int(left / (device_gib * GIB) * 20) / 20
    return share if left >= needed and share * device_gib * GIB >= needed else 0.0


def cell(shape: ModelShape, device: str) -> str:
    """Where the optimizer lives on this device, with the sampler's share."""
    gib, deployment = DEVICES[device]
    for offload, place in ((False, "GPU"), (True, "host")):
        smallest = {"trainer.offload_optimizer": offload, "trainer.gradient_checkpointing": 1}
        config = apply_overrides(load_deployment(deployment), smallest)
        if share := sampler_share(config, shape, gib):
            return f"{place}, {share:.2f}"
    return "no"


def fits() -> Iterator[str]:
    """Rows of models by devices."""
    yield f"| model | {' | '.join(DEVICES)} | host memory when offloaded |"
    yield "|---|---|---|---|---|"
    offloaded = load_deployment("gsm8k-24gb")
    for name, shape in MODELS.items():
        host = host_bytes(offloaded, num_parameters=shape.num_parameters, on_cpu=False, kvcache_bytes=0)
        yield f"| {name} | {' | '.join(cell(shape, device) for device in DEVICES)} | {host / GIB:.0f} GiB |"


def measured_peaks(path: Path, *, is_fused: bool = True) -> Iterator[tuple[str, float, float]]:
    """(plan, computed GiB, measured GiB) of a result of `benchmarks.update` on the measured model.

    `is_fused`: with the trainer's own layers, not with Hugging Face's.
    """
    result: Mapping[str, Any] = json.loads(path.read_text())
    shape = replace(MODELS[MEASURED_MODEL], is_fused=is_fused)
    for text, measured in result["plans"].items():
        if "peak_gib" not in measured:
            continue
        plan = parse_options(text)
        values = {
            "trainer.tokens_per_microbatch": int(plan["tokens"]),
            "trainer.gradient_checkpointing": float(plan.get("recompute", 0)),
            "trainer.logprob_chunk_tokens": int(plan.get("chunk", 4096)),
        }
        computed = trainer_bytes(apply_overrides({}, values), shape) / GIB
        yield f"{result['workload'].upper()}, `{text}`", computed, measured["peak_gib"]


def checked() -> Iterator[str]:
    """Rows of the estimate beside the peaks that were measured."""
    yield "| workload, plan | computed GiB | measured GiB |"
    yield "|---|---|---|"
    for plan, computed, measured in chain.from_iterable(map(measured_peaks, MEASURED)):
        yield f"| {plan} | {computed:.1f} | {measured:.1f} |"


def rewritten(document: str) -> str:
    """A document with the part between the markers replaced by both tables."""
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    tables = "\n".join(["### Computed: what fits", "", *fits(), "", "### Computed against measured", "", *checked()])
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text()))
