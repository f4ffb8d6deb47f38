"""One local service: a guarded process with a log file, and the wait until it answers."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployments.guard import GRACE_S
from deployments.steps import ROOT

_SETTLED_S = 15.0
"""A service that ends sooner cannot run at all."""


class ServiceError(RuntimeError):
    """A local service that cannot start, or that ended."""


class Service:
    """A process that ends with this one, whatever ends it.

    Args:
        name: Names the log file and the errors.
        arguments: Arguments of the Python interpreter.
        environment: The whole environment of the process.
        log_dir: Where `<name>.log` is written anew.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log_dir: Path) -> None:
        self.name, self.log = name, log_dir / f"{name}.log"
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._command = [sys.executable, "-m", "deployments.guard", str(os.getpid()), sys.executable, *arguments]
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start the process; again, if it has ended."""
        self._started_at = time.monotonic()
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which ends its services in their order.
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raise `ServiceError` with the end of the log if the process has ended."""
        if self._process.poll() is not None:
            raise ServiceError(
                f"{self.name} ended with exit status {self._process.returncode}; the end of {self.log}:\n"
                f"{last_lines(self.log)}"
            )

    def has_died(self) -> bool:
        """Whether the process has ended after it was up for a while; raises `ServiceError` if it never was."""
        if self._process.poll() is not None and time.monotonic() - self._started_at < _SETTLED_S:
            self.check()
        return self._process.poll() is not None

    def wait_until_up(self, url: str, timeout_s: float) -> None:
        """Wait until `url` answers; raises `ServiceError` when the process ends or `timeout_s` seconds pass first."""
        deadline = time.monotonic() + timeout_s
        while not answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} does not answer at {url} after {timeout_s:.0f} s; see {self.log}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the process and all that it started; returns when nothing is left."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_S + 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds within two seconds."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def check_port(name: str, port: int, remedy: str) -> None:
    """Raise `ServiceError` if something listens on the loopback port that `name` wants."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(f"port {port} for {name} cannot be had ({error.strerror}): {remedy}") from None


def last_lines(path: Path, count: int = 15) -> str:
    """The last lines of a text file, indented."""
    with path.open(errors="replace") as file:
        return "".join(f"    {line}" for line in deque(file, count)).rstrip()
