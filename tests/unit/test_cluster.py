"""Deaths of engines and of Ray are told from errors of ours, while the engines start and later."""

import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import LocalRayletDiedError, RayActorError, RayError, RaySystemError, RayTaskError

from drgrpo.cluster import cluster as module
from drgrpo.cluster.cluster import Cluster, EngineLost
from drgrpo.cluster.engines import _is_dead
from drgrpo.cluster.runtime import engine_environment
from drgrpo.config import TrainConfig
from drgrpo.settings import Settings

BROKEN_OFF = RayTaskError("update", "Connection closed by peer", RuntimeError("Connection closed by peer"))


class Starting:
    """Engines that cannot be reached: `error` is what starting raises, `lost` what asking for the dead returns."""

    def __init__(self, error: Exception, lost: list[str] | Exception) -> None:
        self.error, self._lost = error, lost
        self.host = self

    def call(self, method: str) -> dict[str, Any]:
        raise self.error

    def lost(self) -> list[str]:
        if isinstance(self._lost, Exception):
            raise self._lost
        return self._lost


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ray is neither started nor stopped; what is stopped is noted."""
    calls: list[str] = []
    monkeypatch.setattr(module, "start_ray", lambda *_: None)
    monkeypatch.setattr(module, "stop_ray", lambda: calls.append("stop"))
    return calls


def start(monkeypatch: pytest.MonkeyPatch, run_dir: Path, error: Exception, lost: list[str] | Exception) -> None:
    monkeypatch.setattr(module, "Engines", lambda *_, train: Starting(error, lost))
    Cluster(TrainConfig(), Settings(), model_path=Path("model"), run_id="a", run_dir=run_dir, train=True)


@pytest.mark.parametrize(
    ("error", "lost", "told"),
    [
        (RaySystemError("the raylet is gone"), [], "Ray itself died"),
        (LocalRayletDiedError(), [], "Ray itself died"),
        (RayActorError(), ["trainer-1"], "trainer-1 died; what they printed is in .*logs"),
        (BROKEN_OFF, ["rollout-0", "trainer-1"], "rollout-0, trainer-1 died"),  # seen by a peer, as an error of gloo
        (BROKEN_OFF, RaySystemError("no answer"), "Ray itself died"),
    ],
)
def test_what_dies_while_the_engines_start_is_a_lost_engine(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, lost: Any, told: str
) -> None:
    with pytest.raises(EngineLost, match=told) as caught:
        start(monkeypatch, tmp_path, error, lost)
    assert caught.value.__cause__ is error and stopped == ["stop"]


@pytest.mark.parametrize("error", [ValueError("a bad setting"), RayActorError(actor_init_failed=True), BROKEN_OFF])
def test_an_error_while_all_live_stays_what_it_is(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught:
        start(monkeypatch, tmp_path, error, [])
    assert caught.value is error and stopped == ["stop"]


def test_ray_that_does_not_start_may_start_the_next_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("drgrpo.cluster.runtime.ray.init", init)
    with pytest.raises(EngineLost, match=r"Ray itself died.*The current node timed out"):
        Cluster(TrainConfig(), Settings(), model_path=Path("model"), run_id="a", run_dir=tmp_path / "run", train=True)
    assert list(tmp_path.iterdir()) == []


def test_ray_that_fails_before_the_first_engine_is_there_stays_an_error(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, train: bool) -> None:
        raise RayError("no such resource")

    monkeypatch.setattr(module, "Engines", refuse)
    with pytest.raises(RayError, match="no such resource"):
        Cluster(TrainConfig(), Settings(), model_path=Path("model"), run_id="a", run_dir=tmp_path, train=True)
    assert stopped == ["stop"]


@pytest.mark.parametrize(
    ("error", "dead"), [(RayActorError(), True), (RayActorError(actor_init_failed=True), False), (None, False)]
)
def test_an_engine_that_refuses_to_start_is_not_dead(error: Exception | None, dead: bool) -> None:
    answer: Future[None] = Future()
    answer.set_exception(error) if error else answer.set_result(None)
    assert _is_dead(answer) is dead


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "ieee"), ("bfloat16", None)])
def test_in_float32_a_gpu_multiplies_float32(dtype: str, precision: str | None) -> None:
    config = TrainConfig.model_validate({"model": {"dtype": dtype}})
    for role in ("rollout", "trainer"):
        environment = engine_environment(Settings(), config, role, on_gpu=True)
        assert environment.get("TRITON_F32_DEFAULT") == precision
        assert "TRITON_F32_DEFAULT" not in engine_environment(Settings(), config, role, on_gpu=False)


def test_vllm_looks_for_a_port_where_the_system_gives_none_to_others() -> None:
    ports = {
        int(engine_environment(Settings(), TrainConfig(), "rollout", on_gpu=on_gpu)["VLLM_PORT"])
        for on_gpu in (True, False)
        for _ in range(8)
    }
    first_of_system = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(ports) > 8, "runs beside each other begin at the same port"
    assert min(ports) >= 20_000 and max(ports) < min(32_000, first_of_system)


def test_what_the_operator_sets_for_vllm_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PORT", "12345")
    assert engine_environment(Settings(), TrainConfig(), "rollout", on_gpu=True)["VLLM_PORT"] == "12345"
