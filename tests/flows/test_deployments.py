"""The deployments on a real Prefect server, and the whole of `make serve` from start to Ctrl-C."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from deployments.environment import read_environment
from deployments.service import answers
from deployments.services import Services
from deployments.steps import load_deployment
from drgrpo.settings import Settings, resolved

ROOT = Path(__file__).parents[2]
NAMES = [
    *(f"drgrpo-compare/{name}" for name in ("gsm8k", "gsm8k-smollm2", "quickstart")),
    "drgrpo-evaluate/default",
    "drgrpo-sft/gsm8k",
    *(f"drgrpo/gsm8k{variant}" for variant in ("", "-24gb", "-grpo", "-nightly", "-smollm2", "-smollm2-grpo")),
    "drgrpo/quickstart",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def machine(root):
    """Variables of a machine that names no services, its state under `root`."""
    unnamed = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    ports = {
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "DRGRPO_MLFLOW_UI_URL": f"http://127.0.0.1:{free_port()}",
    }
    return {**unnamed, **ports, "DRGRPO_ROOT": str(root)}


class Server:
    """A running server, asked over HTTP."""

    def __init__(self, environment):
        self.url, self.variables = environment.api_url, environment.variables
        login = base64.b64encode(environment.auth.encode()).decode()
        self.headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}

    def ask(self, path, body=None, method=None):
        """(status, answer), asked again while SQLite is busy (503), as Prefect's own client does."""
        for _ in range(10):
            status, answer = self.ask_once(path, body, method)
            if status != 503:
                break
            time.sleep(0.5)
        return status, answer

    def ask_once(self, path, body, method):
        """(status, answer)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def create_flow_run(self, name, body):
        """Id of a new flow run of the deployment `name`."""
        status, answer = self.ask(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)
        assert status == 201, answer
        return answer["id"]

    def python(self, code):
        """Output of a Python process that uses the server."""
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, env=self.variables, capture_output=True, text=True, check=True).stdout

    def deploy(self):
        """Standard output of `make deploy`."""
        return self.python("from deployments.deploy import deploy; print(*deploy(), sep='\\n')")

    def deployment(self, name):
        """A deployment as the server has it."""
        status, found = self.ask(f"/deployments/name/{name}")
        assert status == 200
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with everything deployed and no worker."""
    root = tmp_path_factory.mktemp("machine")
    environment = read_environment(machine(root), state_dir=root / ".drgrpo")
    services = Services(environment, resolved(Settings(root=root)))
    try:
        services.start_server()
        running = Server(environment)
        assert running.deploy().split() == NAMES
        yield running
    finally:
        services.stop()


def fields(schema):
    """(section.field, its schema) of each field in a form."""
    for section, definition in schema["definitions"].items():
        for name, field in definition.get("properties", {}).items():
            yield f"{section}.{name}", field


def test_a_deployment_holds_every_value_of_its_file(server):
    for name in ("quickstart", "gsm8k", "gsm8k-grpo"):
        parameters = server.deployment(f"drgrpo/{name}")["parameters"]
        assert parameters == {"config": load_deployment(name).model_dump(mode="json"), "overrides": {}}


def test_each_deployment_is_described_and_tagged(server):
    for name in NAMES:
        deployment = server.deployment(name)
        assert deployment["description"] and deployment["tags"] and deployment["enforce_parameter_schema"]


def test_the_form_describes_and_bounds_every_field(server):
    schema = server.deployment("drgrpo/gsm8k")["parameter_openapi_schema"]
    form = dict(fields(schema))
    assert len(form) > 60
    assert [path for path, field in form.items() if not field.get("description")] == []
    assert (form["OptimizerConfig.lr"]["minimum"], form["OptimizerConfig.lr"]["maximum"]) == (0, 1)
    assert form["OptimizerConfig.lr"]["description"].endswith("(≥ 0, ≤ 1)")
    assert form["RolloutConfig.group_size"]["minimum"] == 1
    assert form["AdvNormConfig.std_level"]["enum"] == ["group", "batch", "none"]
    assert {"config", "overrides"} <= set(schema["properties"])
    assert all(parameter.get("description") for parameter in schema["properties"].values())


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optimizer", "lr", -1),
        ("optimizer", "lr", "fast"),
        ("optimizer", "learning_rate", 1e-6),
        ("rollout", "group_size", 0),
        ("adv_norm", "std_level", "token"),
    ],
)
def test_the_server_refuses_a_wrong_value(server, section, field, value):
    deployment = server.deployment("drgrpo/gsm8k")
    config = deployment["parameters"]["config"]
    body = {"parameters": {"config": {**config, section: {**config[section], field: value}}}}
    status, answer = server.ask(f"/deployments/{deployment['id']}/create_flow_run", body)
    assert status in (409, 422), answer
    assert field in json.dumps(answer) or repr(value).strip("'") in json.dumps(answer)


def test_an_override_keeps_the_deployments_configuration(server):
    deployment = server.deployment("drgrpo/gsm8k")
    body = {"parameters": {"overrides": {"optimizer.lr": 2e-6}}, "state": {"type": "SCHEDULED"}}
    status, flow_run = server.ask(f"/deployments/{deployment['id']}/create_flow_run", body)
    assert status == 201
    assert flow_run["parameters"] == {**deployment["parameters"], **body["parameters"]}


def test_the_server_answers_nobody_without_its_login_but_for_its_health(server):
    def status(path, **headers):
        request = urllib.request.Request(f"{server.url}{path}", headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code

    wrong = base64.b64encode(b"drgrpo:wrong").decode()
    assert (status("/admin/version"), status("/admin/version", Authorization=f"Basic {wrong}")) == (401, 401)
    assert status("/admin/version", Authorization=server.headers["Authorization"]) == 200
    assert status("/health") == 200
    settings = urllib.request.urlopen(server.url.removesuffix("/api") + "/ui-settings", timeout=30)
    assert json.loads(settings.read())["auth"] == "BASIC"  # the UI asks for it


def test_a_deployment_without_the_login_says_where_it_is(server):
    strangers = {**server.variables, "PREFECT_API_AUTH_STRING": "drgrpo:wrong"}
    command = [sys.executable, "-m", "deployments.deploy"]
    done = subprocess.run(command, cwd=ROOT, env=strangers, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "the Prefect server refuses us without its login: set PREFECT_API_AUTH_STRING; "
        "that of `make serve` is in .drgrpo/prefect-auth of its clone\n"
    )


def test_the_nightly_schedule_is_inactive(server):
    (schedule,) = server.deployment("drgrpo/gsm8k-nightly")["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "0 2 * * *")


def test_runs_start_in_the_directory_of_this_clone(server):
    ((step,),) = [server.deployment("drgrpo/quickstart")["pull_steps"]]
    assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}


def test_the_pool_runs_one_at_a_time_unless_its_owner_says_otherwise(server):
    assert server.ask("/work_pools/drgrpo")[1]["concurrency_limit"] == 1
    assert server.ask("/work_pools/drgrpo", {"concurrency_limit": 3}, "PATCH")[0] == 204
    server.python("from deployments.server import ensure_pool; ensure_pool()")
    assert server.ask("/work_pools/drgrpo")[1]["concurrency_limit"] == 3


def test_runs_that_were_killed_are_closed_and_waiting_ones_are_not(server):
    scheduled = {"state": {"type": "SCHEDULED"}}
    going_on, waiting = (server.create_flow_run("drgrpo/quickstart", scheduled) for _ in range(2))
    for state in ("PENDING", "RUNNING"):
        body = {"state": {"type": state}, "force": True}
        assert server.ask(f"/flow_runs/{going_on}/set_state", body)[0] in (200, 201)
    assert server.python("from deployments.server import close_abandoned_runs as c; print(c())") == "1\n"
    states = [server.ask(f"/flow_runs/{run}")[1]["state_type"] for run in (going_on, waiting)]
    assert states == ["CRASHED", "SCHEDULED"]


def test_serve_brings_up_everything_and_ctrl_c_leaves_nothing(tmp_path):
    variables = machine(tmp_path)
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "deployments.serve"]
        serve = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Ctrl-C stops everything." in log.read_text() or serve.poll() is not None, 540)
        assert serve.poll() is None, log.read_text()
        url = f"http://127.0.0.1:{variables['PREFECT_SERVER_API_PORT']}/api"
        assert answers(url.removesuffix("api") + "dashboard")
        assert answers(variables["DRGRPO_MLFLOW_UI_URL"])
        auth = (tmp_path / ".drgrpo" / "prefect-auth").read_text().strip()
        told = log.read_text().splitlines()
        assert f"Login     {auth}" in told
        export = f"export PREFECT_API_AUTH_STRING=$(cat {tmp_path / '.drgrpo' / 'prefect-auth'})"
        assert told[told.index(export) - 1] == f"export PREFECT_API_URL={url}"
        commands = "\n".join([told[told.index(export) - 1], export, f"{sys.executable} -m prefect work-pool ls"])
        shell = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=False)
        assert shell.returncode == 0 and "drgrpo" in shell.stdout, shell.stderr
    finally:
        serve.send_signal(signal.SIGINT)
    assert serve.wait(60) == 128 + signal.SIGINT
    assert [process for process in psutil.process_iter() if mark(process) == str(tmp_path)] == []


def mark(process):
    try:
        return process.environ().get("DRGRPO_ROOT")
    except psutil.Error:
        return None


def wait_until(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
