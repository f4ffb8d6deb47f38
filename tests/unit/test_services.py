"""Local services: what the environment means, what is refused, and that nothing outlives its parent."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from deployments import steps
from deployments.environment import mlflow_port, read_environment
from deployments.outcome import show_outcome
from deployments.quickstart import main, parse_overrides
from deployments.service import Service, ServiceError, check_port
from deployments.services import Services, running_services, served
from deployments.steps import load_deployment, read_configs
from drgrpo.config.errors import ConfigError
from drgrpo.report import write_history
from drgrpo.settings import Settings, resolved

ROOT = Path(__file__).parents[2]
# A process that leaves its session, and one that does not listen to SIGTERM.
STRAYS = "setsid sleep 1234 & (trap '' TERM; while true; do sleep 1; done) & sleep 1234"


@pytest.fixture
def marked(monkeypatch, tmp_path):
    """Function that returns the processes of this test: a variable marks them, however far they went."""
    monkeypatch.setenv("DRGRPO_TEST_MARK", str(tmp_path))

    def find():
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("DRGRPO_TEST_MARK") == str(tmp_path):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    return find


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(autouse=True)
def kept_process_state(monkeypatch):
    """`running_services` changes the process: its environment and its signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = dict(os.environ)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


SECOND_SIGNAL = """
import os, signal, sys
from deployments import guard
ignore = signal.signal
def late(number, handler):
    if handler is signal.SIG_IGN and not sent:  # one that comes just before signals are ignored
        sent.append(number)
        os.kill(os.getpid(), signal.SIGTERM)
    return ignore(number, handler)
sent = []
guard.signal.signal = late
sys.exit(guard.guard(os.getppid(), sys.argv[1:]))
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, None])
def test_a_signal_while_a_guard_ends_does_not_stop_it_from_ending_all(marked, tmp_path, first):
    command = ["bash", "-c", f"setsid sleep 1234 & touch {tmp_path / 'up'}; {'sleep 1234' if first else 'exit 0'}"]
    guard = subprocess.Popen([sys.executable, "-c", SECOND_SIGNAL, *command], cwd=ROOT)
    wait_until(lambda: (tmp_path / "up").exists(), timeout_s=60)
    if first:
        guard.send_signal(first)
    assert guard.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: not marked(), timeout_s=5)


def guarded(*command):
    return [sys.executable, "-m", "deployments.guard", str(os.getpid()), *command]


def test_a_guard_passes_on_the_exit_status_of_its_command():
    assert subprocess.run(guarded("bash", "-c", "exit 7"), cwd=ROOT, check=False).returncode == 7
    assert subprocess.run(guarded("bash", "-c", "kill -9 $$"), cwd=ROOT, check=False).returncode == 128 + 9


def test_a_guard_whose_parent_is_gone_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "deployments.guard", "1", "touch", str(tmp_path / "file")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "file").exists()


def test_a_stopped_service_leaves_no_process(marked, tmp_path):
    code = f"import subprocess; subprocess.run(['bash', '-c', {STRAYS!r}])"
    service = Service("strays", ["-c", code], dict(os.environ), tmp_path)
    wait_until(lambda: len(marked()) >= 6)
    service._process.send_signal(signal.SIGTERM)
    wait_until(lambda: not marked(), timeout_s=30)


def test_services_end_with_a_process_that_is_killed(marked, tmp_path):
    code = (
        "import os, time; from pathlib import Path; from deployments.service import Service;"
        f"Service('sleeper', ['-c', 'import time; time.sleep(99)'], dict(os.environ), Path({str(tmp_path)!r}));"
        "time.sleep(99)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: len(marked()) == 3)
    parent.kill()
    parent.wait()
    wait_until(lambda: not marked(), timeout_s=30)


def test_a_service_that_ends_shows_the_end_of_its_log(tmp_path):
    service = Service("broken", ["-c", "raise SystemExit('no disk left')"], dict(os.environ), tmp_path)
    with pytest.raises(ServiceError, match=r"broken ended with exit status 1(.|\n)*no disk left"):
        service.wait_until_up("http://127.0.0.1:1/", timeout_s=20)


def test_without_any_variable_all_is_local_and_quiet(tmp_path):
    environment = read_environment({}, state_dir=tmp_path)
    assert (environment.local, environment.api_url) == (True, "http://127.0.0.1:4200/api")
    assert environment.variables["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment.variables["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_server_that_the_environment_names_is_used_with_the_users_own_files(tmp_path):
    environment = read_environment({"PREFECT_API_URL": "http://there/api"}, state_dir=tmp_path)
    assert (environment.local, environment.variables["PREFECT_API_URL"]) == (False, "http://there/api")
    assert "PREFECT_HOME" not in environment.variables


def test_the_local_server_has_a_login_that_its_owner_alone_can_read_and_that_stays(tmp_path):
    first, second = (read_environment({}, state_dir=tmp_path / ".drgrpo") for _ in range(2))
    assert re.fullmatch(r"drgrpo:[0-9a-f]{32}", first.auth) and second.auth == first.auth
    file = tmp_path / ".drgrpo" / "prefect-auth"
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o600, f"{first.auth}\n")
    for variable in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        assert first.variables[variable] == first.auth
    assert read_environment({}, state_dir=tmp_path / "other").auth != first.auth
    command = f"{first.exports}\necho $PREFECT_API_URL $PREFECT_API_AUTH_STRING"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{first.api_url} {first.auth}\n" and first.auth not in first.exports


def test_another_server_gets_the_login_that_the_environment_has_for_it(tmp_path):
    named = {"PREFECT_API_URL": "http://there/api", "PREFECT_API_AUTH_STRING": "me:secret"}
    environment = read_environment(named, state_dir=tmp_path)
    assert (environment.auth, environment.login) == ("", "")
    assert environment.variables["PREFECT_API_AUTH_STRING"] == "me:secret"
    assert environment.exports == "export PREFECT_API_URL=http://there/api\n" and list(tmp_path.iterdir()) == []


def test_an_empty_address_is_none(tmp_path):
    environment = read_environment({"PREFECT_API_URL": "", "PREFECT_SERVER_API_PORT": "4299"}, state_dir=tmp_path)
    assert environment.variables["PREFECT_API_URL"] == "http://127.0.0.1:4299/api"


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_a_port_that_is_none_is_refused(port, tmp_path):
    with pytest.raises(ServiceError, match="PREFECT_SERVER_API_PORT"):
        read_environment({"PREFECT_SERVER_API_PORT": port}, state_dir=tmp_path)


def test_mlflows_ui_is_served_on_loopback_only():
    assert mlflow_port("http://127.0.0.1:5001") == 5001
    with pytest.raises(ServiceError, match="loopback"):
        mlflow_port("http://example.com:5000")


def test_a_taken_port_is_named_with_its_remedy_and_nothing_starts(taken_port, tmp_path):
    with pytest.raises(ServiceError, match=f"port {taken_port} for MLflow(.|\n)*elsewhere"):
        check_port("MLflow's UI", taken_port, "go elsewhere")
    environment = read_environment({"PREFECT_SERVER_API_PORT": str(taken_port)}, state_dir=tmp_path)
    with pytest.raises(ServiceError, match=f"port {taken_port}.*PREFECT_SERVER_API_PORT"):
        Services(environment, resolved(Settings(root=tmp_path))).start_server()
    assert [path.name for path in tmp_path.iterdir()] == ["prefect-auth"]


def test_a_named_server_that_does_not_answer_is_an_error(tmp_path):
    environment = read_environment({"PREFECT_API_URL": "http://127.0.0.1:1/api"}, state_dir=tmp_path)
    with pytest.raises(ServiceError, match=r"PREFECT_API_URL = http://127\.0\.0\.1:1/api: no answer"):
        Services(environment, resolved(Settings(root=tmp_path))).start_server()


def test_the_services_of_one_directory_run_once(tmp_path):
    with socket.socket() as probe:  # a port that nobody serves, which the default one may be
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = read_environment({"PREFECT_SERVER_API_PORT": str(port)}, state_dir=tmp_path)
    settings = resolved(Settings(root=tmp_path))
    with running_services(environment, settings, purpose="serve"):
        assert not served(environment)  # no server answers
        with (
            pytest.raises(ServiceError, match=f"`serve`, process {os.getpid()}"),
            running_services(environment, settings, purpose="quickstart"),
        ):
            pass
    with running_services(environment, settings, purpose="quickstart"):
        pass


def test_a_signal_leaves_the_block_of_services(tmp_path):
    environment = read_environment({}, state_dir=tmp_path)
    with (
        pytest.raises(SystemExit) as left,
        running_services(environment, resolved(Settings(root=tmp_path)), purpose="serve"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert left.value.code == 128 + signal.SIGTERM


def test_values_of_the_command_line_are_json_or_text():
    assert parse_overrides(["seed=1", "optimizer.lr=0", "model.path=a=b", "rollout.stop=[]"]) == {
        "seed": 1,
        "optimizer.lr": 0,
        "model.path": "a=b",
        "rollout.stop": [],
    }


def test_a_bad_setting_stops_quickstart_before_anything_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DRGRPO_ROOT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main(["--set", "total_step=3"]) == 1
    assert main(["--set", "seed"]) == 1
    error = capsys.readouterr().err
    assert "did you mean `total_steps`?" in error and "KEY=VALUE" in error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with its own deployments."""
    monkeypatch.setattr(steps, "FOLDER", tmp_path)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    return tmp_path


def test_a_deployment_extends_another_and_keeps_what_it_does_not_say():
    base, grpo = load_deployment("gsm8k"), load_deployment("gsm8k-grpo")
    assert (grpo.adv_norm.std_level, grpo.loss.aggregation) == ("group", "sequence_mean")
    assert grpo.model_copy(update={"adv_norm": base.adv_norm, "loss": base.loss}) == base


def test_every_value_of_a_deployment_is_spelled_out_for_the_form():
    configs = read_configs()["configs"]
    assert configs["gsm8k"] == load_deployment("gsm8k").model_dump(mode="json")
    assert configs["gsm8k"]["optimizer"]["beta2"] == 0.95  # said by no file


def test_a_mistake_in_a_deployment_names_its_file(folder):
    (folder / "a.yaml").write_text("optimzer: {lr: 1}\n")
    with pytest.raises(ConfigError, match="optimizer") as caught:
        load_deployment("a")
    assert caught.value.__notes__ == [f"in {folder / 'a.yaml'}"]


def test_a_file_that_is_no_yaml_is_named_with_its_line(folder):
    (folder / "a.yaml").write_text("seed: 1\nmodel: {path: [\n")
    with pytest.raises(yaml.YAMLError, match=r"a\.yaml"):
        load_deployment("a")


@pytest.mark.parametrize(("text", "problem"), [("extends: b", "no such file"), ("extends: a", "extends itself")])
def test_extending_nothing_or_itself_is_a_mistake(folder, text, problem):
    (folder / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_deployment("a")


def test_a_name_in_prefect_yaml_without_a_file_stops_the_deployment(folder):
    (folder / "a.yaml").write_text("seed: 1\n")
    (folder / "prefect.yaml").write_text('"{{ configs.a }}" "{{configs.gms8k}}"')
    with pytest.raises(ConfigError, match=r"configs\.gms8k"):
        read_configs()


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [([0.2, 0.1, 0.3], "it rose"), ([0.1, -0.1, 0.3], "no change is shown"), ([-0.2, -0.3, -0.1], "it fell")],
)
def test_the_outcome_claims_a_rise_only_above_zero(difference, verdict, tmp_path):
    write_history(tmp_path / "history.jsonl", {"step": 0, "reward/mean": 0.25, "seconds/rollout": 3.0})
    scores = {f"evaluation/avg_at_k{end}": value for end, value in (("", 0.2), ("_low", 0.1), ("_high", 0.3))}
    summary = {"before": scores, "after": scores, "difference": difference, "plot": "report.png", "mlflow_url": "url"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    console = Console(record=True, width=120)
    show_outcome(console, tmp_path, run_url="there", served=False)
    text = console.export_text()
    assert verdict in text and "20.0% [10.0%, 30.0%]" in text and "make serve" in text


def test_services_import_no_engine_and_not_prefect():
    code = (
        "import sys, deployments.quickstart, deployments.serve, deployments.deploy;"
        "print(*{'torch', 'vllm', 'deepspeed', 'ray', 'prefect'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
