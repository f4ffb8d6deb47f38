"""No token, password or login reaches a log, an error, MLflow or a file."""

import base64
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.flat import flatten
from drgrpo.config.overrides import load_config
from drgrpo.redaction import is_secret, mask
from drgrpo.settings import load_settings
from drgrpo.tracking import Tracker, TrackingError, check_tracking_uri
from drgrpo.tracking import tracker as tracker_module
from drgrpo.tracking.spool import Spool
from drgrpo.tracking.store import MlflowStore

SECRET = "sesame-9f2c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{SECRET}@host:5000/x", "http://***@host:5000/x"),
        (f"postgresql://me:p@{SECRET}@host/db", "postgresql://***@host/db"),
        (f"mysql+pymysql://me:a/b{SECRET}@host/db", "mysql+pymysql://***@host/db"),
        (f"https://{SECRET}@github.com/a/b and http://you:x@there", "https://***@github.com/a/b and http://***@there"),
        (f"http://host/?a=1&token={SECRET}&b=2", "http://host/?a=1&token=***&b=2"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrst github_pat_abcdefghijklmnopqrst", "*** ***"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("http://host:5000/a?b=c", "http://host:5000/a?b=c"),
        ("the bearer of the ring", "the bearer of the ring"),
    ],
)
def test_logins_and_tokens_are_masked_in_texts(text: str, shown: str) -> None:
    assert mask(text) == mask(shown) == shown


@pytest.mark.parametrize("unit", ["://", "://a:", "?token", "hf_", "a@", "://a@", "Bearer a"])
def test_masking_takes_linear_time(unit: str) -> None:
    mask(unit * (100_000 // len(unit)))  # the suite's own time limit fails a quadratic one


def test_no_setting_of_the_configuration_is_taken_for_a_secret() -> None:
    assert [path for path in flatten(load_config({})) if is_secret(path)] == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"hub_token": SECRET},
        {"model": {"password": SECRET}},
        {"model.pth": f"https://me:{SECRET}@host/model"},
        {"data.train": ["hf_" + SECRET.replace("-", "") * 2]},
        {"mlflow": {"deep": [f"postgresql://me:{SECRET}@host/db"]}},
    ],
)
def test_a_mistake_in_the_configuration_shows_no_secret(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, overrides)
    assert SECRET not in str(caught.value) and SECRET.replace("-", "") not in str(caught.value)
    assert all(SECRET not in str(mistake) for mistake in caught.value.mistakes)


def test_an_error_shows_no_control_character_and_not_the_whole_of_a_long_name() -> None:
    text = str(ConfigError([Mistake("a\x1b[2J" + "b" * 9000, "\u202e", "wrong\x07", "fix it")]))
    assert all(character.isprintable() for character in text.replace("\n", "")) and len(text) < 400


def test_settings_of_the_machine_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRGRPO_HUB_TOKEN", SECRET)
    assert SECRET not in repr(load_settings()) + str(load_settings().model_dump_json())
    monkeypatch.setenv("DRGRPO_MLFLOW_URI", f"http://me:{SECRET}@host")
    monkeypatch.setenv("DRGRPO_DATABASE_PASSWORD", SECRET)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert SECRET not in str(caught.value)


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses every request, as host:port, and the logins that it was shown."""
    logins: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization", ""))
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"forbidden")

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", logins
    server.shutdown()
    server.server_close()


def test_a_servers_login_is_used_and_told_to_nobody(
    refusing: tuple[str, list[str]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored afterwards
    address, logins = refusing
    caplog.set_level(logging.DEBUG)
    uri = f"http://me:{SECRET}@{address}"
    with pytest.raises(TrackingError) as caught:
        check_tracking_uri(uri)
    told = str(caught.value) + repr(caught.value.__cause__) + repr(getattr(caught.value.__cause__, "__cause__", ""))
    assert address in told and SECRET not in told
    assert set(logins) == {"Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()}
    assert SECRET not in str(MlflowStore(uri).uri) and SECRET not in caplog.text


@pytest.mark.parametrize("uri", [f"me:{SECRET}@host:5000", f"file://me:{SECRET}@host/x", f"ftp://me:{SECRET}@host"])
def test_a_tracking_uri_that_is_none_is_shown_without_its_login(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        check_tracking_uri(uri)
    assert SECRET not in str(caught.value)


def test_what_mlflow_refuses_is_set_aside_without_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: Any) -> None:
        raise ValueError(f"no such table in postgresql://me:{SECRET}@host/db")

    spool = Spool(tmp_path / "run.jsonl", refuse)
    spool.append({"kind": "metrics"})
    assert spool.close(10.0) == 0
    assert "postgresql://***@host/db" in (tmp_path / "run.jsonl.refused").read_text()
    assert SECRET not in caplog.text + "".join(path.read_text() for path in tmp_path.iterdir())


class Store:
    """Stands in for MLflow: keeps what is delivered."""

    uri = "http://host"
    delivered: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        """Any store."""

    def experiment_id(self, *_: Any) -> str:
        return "1"

    def run_id(self, *_: Any) -> str:
        return "run"

    def last_steps(self, _: str) -> dict[str, int]:
        return {}

    def apply(self, event: Any) -> None:
        self.delivered.append(event)


def test_no_secret_is_sent_to_mlflow_or_lies_on_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.delivered = []
    monkeypatch.setattr(tracker_module, "MlflowStore", Store)
    tracker = Tracker.start(
        f"http://me:{SECRET}@host",
        "experiment",
        "run",
        own_id="run-1",
        params={
            "hub_token": SECRET,
            "model": {"path": f"https://me:{SECRET}@host/m"},
            "stop": [f"http://a:{SECRET}@b"],
        },
        tags={"db_password": SECRET, "from": f"http://me:{SECRET}@host"},
        spool_dir=tmp_path,
    )
    tracker.log_dataset(f"http://me:{SECRET}@host/data", "d" * 64, f"http://me:{SECRET}@host/data", 3)
    journal = (tmp_path / "run.jsonl").read_text()
    assert tracker.finish() == 0
    assert {event["kind"] for event in Store.delivered} == {"status", "params", "tags", "dataset"}
    assert "https://***@host/m" in journal and SECRET not in journal + repr(Store.delivered)
    assert SECRET not in tracker.run_url(f"http://me:{SECRET}@127.0.0.1:5000")
