"""The architecture as import rules: which way the arrows point, and what never reaches the flow process."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "deepspeed", "transformers")

# Plain types and pure maths take tensors, numbers and text; they know no engine, no tracker and no configuration.
PURE = (
    "advantage",
    "architecture",
    "checkpoints",
    "correction",
    "data",
    "decoding",
    "durable",
    "health",
    "hub_model",
    "kl",
    "leftovers",
    "loss",
    "metrics",
    "models",
    "module_process",
    "packaged_model",
    "packing",
    "redaction",
    "report",
    "rewards",
    "rollout.sampling",
    "schedule",
    "statistics",
    "sync_check",
    "tables",
    "tokenization",
    "trainer.compiled",
    "trainer.gather",
    "trainer.layout",
    "trainer.attention",
    "trainer.background",
    "trainer.batch",
    "trainer.decoder_layer",
    "trainer.flops",
    "trainer.gated_mlp",
    "trainer.logit_kernels",
    "trainer.logprobs",
    "trainer.minibatches",
    "trainer.norm_kernels",
    "trainer.rms_norm",
    "trainer.samples",
)
CONFIG = ("config", "run_id", "settings")
# Tracking stands beside the engines: it reads nothing of theirs, and they nothing of its.
ENGINES = ("demonstrations", "grader", "host", "problems", "rollout", "scoring", "tracking", "trainer", "weight_sync")
CLUSTER = ("cluster",)
RUN = (
    *("comparison", "description", "device_lock", "notice", "opening"),
    *("inspection", "origin", "preflight", "preflight_data", "rollback", "run", "savepoints", "start", "stored_policy"),
)
LAYERS = (PURE, CONFIG, ENGINES, CLUSTER, RUN)


def modules(package: str) -> dict[str, Path]:
    """Dotted name to file of every module of a package."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imports(path: Path, package: str) -> Iterator[str]:
    """Every module that a file imports anywhere in it, in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            # `from drgrpo import tables` imports a module too
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == package)


def imported_by(package: str) -> list[tuple[str, str]]:
    """(module, what it imports) for all modules of a package."""
    return [(name, target) for name, path in modules(package).items() for target in imports(path, package)]


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """Index of the layer of `drgrpo.<...>`: the longest name that fits decides."""
    matches = [
        (len(name), index) for index, names in enumerate(LAYERS) for name in names if is_in(module, f"drgrpo.{name}")
    ]
    assert matches, f"{module} is in no layer; add it to one"
    return max(matches)[1]


def test_flows_use_tasks_and_tasks_use_the_library_and_never_the_other_way_round() -> None:
    upwards = {
        "drgrpo": ("tasks", "flows", "deployments"),
        "tasks": ("flows", "deployments"),
        "flows": ("deployments",),
    }
    for package, forbidden in upwards.items():
        wrong = [(name, to) for name, to in imported_by(package) if any(is_in(to, above) for above in forbidden)]
        assert wrong == []


def test_the_package_never_imports_its_tests_or_benchmarks() -> None:
    for package in ("drgrpo", "tasks", "flows", "deployments"):
        assert [(n, to) for n, to in imported_by(package) if is_in(to, "tests") or is_in(to, "benchmarks")] == []


def test_the_library_never_imports_prefect() -> None:
    assert [(name, to) for name, to in imported_by("drgrpo") if is_in(to, "prefect")] == []


def test_mlflow_is_imported_by_the_tracking_package_alone() -> None:
    users = {
        name
        for package in ("drgrpo", "tasks", "flows", "deployments")
        for name, to in imported_by(package)
        if is_in(to, "mlflow")
    }
    assert users == {"drgrpo.tracking.policy", "drgrpo.tracking.store"}


def test_layers_of_the_library_import_downwards_only() -> None:
    known = modules("drgrpo")
    wrong = [
        (name, to)
        for name, to in imported_by("drgrpo")
        if "drgrpo" not in (name, to) and to in known and layer(to) > layer(name)
    ]
    assert wrong == []


def test_the_engines_do_not_know_the_cluster_that_runs_them() -> None:
    for engine in ("rollout", "trainer", "weight_sync", "host"):
        names = [(n, to) for n, to in imported_by("drgrpo") if is_in(n, f"drgrpo.{engine}")]
        assert [(n, to) for n, to in names if is_in(to, "drgrpo.cluster") or is_in(to, "drgrpo.run")] == []


def test_pure_modules_import_no_engine_and_no_configuration() -> None:
    forbidden = ("vllm", "deepspeed", "ray", "mlflow", "prefect", "drgrpo.config", "drgrpo.settings")
    pure = [name for name in modules("drgrpo") if name != "drgrpo" and layer(name) == 0]
    assert {"drgrpo.advantage", "drgrpo.loss", "drgrpo.packing", "drgrpo.statistics"} <= set(pure)
    wrong = [
        (name, to)
        for name, to in imported_by("drgrpo")
        if name in pure and any(is_in(to, above) for above in forbidden)
    ]
    assert wrong == []


def test_no_module_is_imported_in_a_circle() -> None:
    known = modules("drgrpo")
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, to in imported_by("drgrpo"):
        if to in known and to != name:
            graph[name].add(to)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.fixture(scope="module")
def flow_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Heavy modules of a fresh flow process: after its imports, and after it checked a configuration."""
    folder = tmp_path_factory.mktemp("flow-process")
    model = build_tiny_model(folder / "model")
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i} + 1", "answer": str(i + 1)} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = f"""
import json, sys
import flows.train, flows.sft, flows.compare, flows.arm, flows.evaluate
def heavy(): return [name for name in {HEAVY!r} if name in sys.modules]
imported = heavy()
from drgrpo.preflight import checked_config
from drgrpo.settings import load_settings
overrides = {{
    "model.path": {str(model)!r}, "model.dtype": "float32", "data.train": {str(folder)!r}, "data.eval": {str(folder)!r},
    "data.max_prompt_tokens": 64, "rollout.max_completion_tokens": 16, "data.prompts_per_step": 2,
    "trainer.completions_per_update": 16,
}}
checked_config({{}}, overrides, load_settings())
print(json.dumps({{"imported": imported, "checked": heavy()}}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DRGRPO_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "DRGRPO_ROOT": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_the_flows_loads_no_engine(flow_process: dict[str, list[str]]) -> None:
    assert flow_process["imported"] == []


def test_checking_a_configuration_loads_no_engine(flow_process: dict[str, list[str]]) -> None:
    assert flow_process["checked"] == []
