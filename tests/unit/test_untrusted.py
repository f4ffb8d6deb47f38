"""What comes from models, datasets, completions and configurations is data: never code, markup, a path or a leak."""

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from deployments import services as services_module
from deployments.environment import read_environment
from deployments.services import Services
from drgrpo.cluster.engines import TARGETS
from drgrpo.config.overrides import load_config
from drgrpo.data.errors import DataError
from drgrpo.data.sources import Source, load_problems
from drgrpo.models import ModelError, inspect_model, resolve_model
from drgrpo.report import samples_table
from drgrpo.settings import Settings, resolved
from drgrpo.tracking.store import json_table
from tests.tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("drgrpo", "flows", "tasks", "deployments")
SECRET = "sesame-9f2c"


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """Every node of a kind in the product's modules, with the module's path."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, kind):
                    yield str(path.relative_to(ROOT)), node


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{name_of(value)}.{attr}"
        case _:
            return "?"


CALLS = [(path, name_of(call.func), call) for path, call in nodes(ast.Call)]


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# Code


def test_no_module_evaluates_text_or_reads_pickles() -> None:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "runpy"}
    imported = [(path, alias.name) for path, node in nodes(ast.Import) for alias in node.names]
    imported += [(path, node.module or "") for path, node in nodes(ast.ImportFrom)]
    assert [(path, name) for path, name in imported if name.split(".")[0] in modules] == []
    forbidden: tuple[str, ...] = (
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "torch.load",
        "np.load",
        "numpy.load",
    )
    forbidden += ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "mlflow.pyfunc.load_model")
    assert [(path, name) for path, name, _ in CALLS if name in forbidden] == []
    shells = [path for path, _, call in CALLS for word in call.keywords if word.arg == "shell"]
    assert shells == []


def test_code_of_a_model_repository_runs_by_the_setting_alone() -> None:
    loaders = {
        (path, name): {word.arg: ast.unparse(word.value) for word in call.keywords}
        for path, name, call in CALLS
        if name.endswith(".from_pretrained") or name in ("LLM", "snapshot_download")
    }
    # A packaged model is part of a Python package, its weights one GGUF file.
    trusting = {key: words for key, words in loaders.items() if key[0] != "drgrpo/packaged_model.py"}
    assert len(trusting) >= 3
    for key, words in trusting.items():
        assert words.get("trust_remote_code", "").endswith("trust_remote_code"), key
    always = [
        path for path, _, call in CALLS for word in call.keywords if ast.unparse(word) == "trust_remote_code=True"
    ]
    assert always == []
    assert load_config({}).model.trust_remote_code is False


def test_modules_are_imported_by_name_for_rewards_in_a_grader_and_for_our_engines_alone() -> None:
    imported = [(path, call.args[0]) for path, name, call in CALLS if name == "importlib.import_module"]
    importers = {path for path, name in imported if not isinstance(name, ast.Constant)}
    assert importers == {"drgrpo/rewards/registry.py", "drgrpo/cluster/process.py"}
    assert {path for path, name, _ in CALLS if name == "load_reward_functions"} == {"drgrpo/rewards/worker.py"}
    assert len(TARGETS) == 3 and all(target.startswith("drgrpo.") for target in TARGETS.values())
    spawned = [
        call.args[0] for path, name, call in CALLS if path.startswith("drgrpo/cluster/") and name == "self._spawn"
    ]
    assert spawned and all(ast.literal_eval(role) in TARGETS for role in spawned)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    """A model that brings code of its own, and pickles beside its weights."""
    import torch

    path = tmp_path / "model"
    path.mkdir()
    for file in built.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    torch.save({"lm_head.weight": Touch(tmp_path / "unpickled")}, path / "pytorch_model.bin")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    for name, kinds in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        values = json.loads((path / name).read_text())
        values["auto_map"] = {kind: "evil.Evil" if kind != "AutoTokenizer" else ["evil.Evil", None] for kind in kinds}
        (path / name).write_text(json.dumps(values))
    return path


def test_a_models_own_code_and_pickles_are_left_alone(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert resolve_model(str(model), revision="main", cache_dir=tmp_path) == model
    AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "evil"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickles"):
        resolve_model(str(model), revision="main", cache_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "../other.safetensors"}, {"a": "/etc/passwd"}, {"a": "pytorch_model.bin"}, {"a": 1}, {}, [], None],
)
def test_an_index_names_nothing_but_safetensors_beside_it(model: Path, tmp_path: Path, weight_map: Any) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="does not name safetensors files beside it"):
        resolve_model(str(model), revision="main", cache_dir=tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"max_position_embeddings": "x", "text_config": 3}', "\xff", "{}"])
def test_a_models_configuration_of_any_form_is_an_error_or_says_nothing(model: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("latin-1"))
    try:
        assert inspect_model(str(model), revision="main", cache_dir=model).context_length is None
    except ModelError as error:
        assert "config.json" in str(error)


def test_a_chat_template_is_rendered_in_a_sandbox(model: Path) -> None:
    from jinja2.exceptions import SecurityError
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_a_parquet_file_with_a_pickled_type_unpickles_nothing(tmp_path: Path) -> None:
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Touch(tmp_path / "unpickled"), protocol=0),
    }
    schema = pa.schema([pa.field("question", pa.string(), metadata=metadata), pa.field("answer", pa.string())])
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table([["1 + 1?"], ["2"]], schema=schema), path)
    assert len(load_problems(Source(str(path), split="train")).problems) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["train.parquet"]


# Markup

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "`` </code> [x](javascript:alert(1)) ![x](http://evil/x.png) | <b>",
    "\x1b[2J\x1b]0;title\x07 \u202e \x00",
    '{"type": "image", "filepath": "http://evil/x.png"}',
]


def test_samples_are_text_in_prefects_and_mlflows_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import artifacts

    shown: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **values: shown.update(values))
    tracker = SimpleNamespace(log_table=lambda rows, file: shown.update(mlflow=rows))
    config = SimpleNamespace(evaluation=SimpleNamespace(num_shown=9))
    columns = (
        "completion",
        "prompt",
        "answer",
        "question",
        "finish_reason",
        "grader_status",
        "grader_message",
        "problem_id",
    )
    table = pa.table({**dict.fromkeys(columns, HOSTILE), "correct": [True, False, True, False], "reward": [0.0] * 4})
    run: Any = SimpleNamespace(config=config, tracker=tracker, run_id="r")
    artifacts.show_evaluation(run, table, {}, 3)
    cells = [cell for row in shown["table"] for cell in row.values()]
    assert len(shown["table"]) == 4 and sum("alert" in cell for cell in cells) >= 6
    for cell in filter(None, cells):
        rendered = MarkdownIt("commonmark", {"html": True}).render(cell)
        assert rendered.count("<") == 2 + 2 * rendered.count("<code>"), cell
    for row in shown["mlflow"]:
        assert all(isinstance(cell, str) and cell.isprintable() for cell in row.values())
    assert {type(cell) for line in json.loads(json_table(shown["mlflow"]))["data"] for cell in line} == {str}


def test_every_column_that_a_reader_sees_of_a_sample_is_cleaned() -> None:
    names = ("mode", "completion", "answer", "finish_reason", "grader_status", "problem_id", "prompt")
    table = pa.table({**{name: ["\x1b[2J<b>"] for name in names}, "correct": [True], "reward": [1.0]})
    (row,) = samples_table(table, 1)
    assert [cell for cell in row.values() if "<b>" in cell] == ["`<b>`"] * len(names)


# Paths


@pytest.mark.parametrize("split", ["../secret", "/etc/passwd", "a/b"])
def test_a_split_is_a_file_of_its_directory(tmp_path: Path, split: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(DataError, match="without /"):
        load_problems(Source(str(tmp_path / "data"), split=split))


def test_a_pipe_or_device_is_no_dataset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        load_problems(Source(str(tmp_path / "train.jsonl"), split="train"))
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        load_problems(Source(str(tmp_path / "zero.parquet"), split="train"))


# Servers


class Started:
    """Stands in for a service: keeps how it would be started."""

    commands: list[tuple[list[str], dict[str, str]]]

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log_dir: Path) -> None:
        self.commands.append((arguments, environment))

    def wait_until_up(self, url: str, timeout_s: float) -> None:
        assert urlsplit(url).hostname == "127.0.0.1"


def test_services_listen_on_loopback_and_their_arguments_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started.commands = []
    monkeypatch.setattr(services_module, "Service", Started)
    monkeypatch.setattr(services_module, "check_port", lambda *_: None)
    environment = read_environment({}, state_dir=tmp_path)
    database = f"postgresql://me:{SECRET}@host/mlflow"
    services = Services(environment, resolved(Settings(root=tmp_path, mlflow_tracking_uri=database)))
    services.start_server()
    assert services.start_mlflow_ui() == "http://127.0.0.1:5000"
    for arguments, _ in Started.commands:
        assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
        assert SECRET not in " ".join(arguments)
    assert Started.commands[1][1]["MLFLOW_BACKEND_STORE_URI"] == database
    remote = Settings(root=tmp_path, mlflow_tracking_uri=f"http://me:{SECRET}@host:5000")
    assert Services(environment, resolved(remote)).start_mlflow_ui() == "http://***@host:5000"


def test_nothing_of_ours_binds_every_address() -> None:
    texts = [
        (path, node.value)
        for path, node in nodes(ast.Constant)
        if isinstance(node.value, str) and node.value in ("0.0.0.0", "::")
    ]
    assert texts == []
