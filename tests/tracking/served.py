"""MLflow's server as a process that can be killed, halted and started again."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from tracking.logged import free_port


def wait(condition: Callable[[], Any], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


class Server:
    """What *command* starts, on a port of its own, which is known before."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, command: str, folder: Path) -> None:
        port = free_port()
        self.command, self.folder, self.address = f"{command} --port {port}", folder, f"http://127.0.0.1:{port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            shell=True,
            start_new_session=True,
            cwd=self.folder,  # artifacts sent to the server lie below it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait(self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the server has ended"
        try:
            return requests.get(f"{self.address}/health", timeout=60).ok
        except requests.ConnectionError:
            return False

    def rest(self, method: str, path: str, **options: Any) -> Any:
        answer = requests.request(method, f"{self.address}/api/2.0/mlflow/{path}", timeout=60, **options)
        answer.raise_for_status()
        return answer.json()

    def kill(self) -> None:
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def halt(self) -> None:
        """From now on it takes connections, and answers none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)
