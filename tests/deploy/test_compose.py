"""The stack of docker-compose.yml for real: two sweeps at once on two workers, one of which is killed in between."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT

from scl_ray import results
from scl_ray.cluster.metrics import METRICS
from scl_ray.store import open_store

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

PASSWORDS = ("RAY_AUTH_TOKEN", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY", "POSTGRES_PASSWORD")
WITHIN = 900.0  # seconds that anything may take on a slow machine
SETTINGS = [
    "grid.objective=[cross_entropy, {name: supcon, temperature: [0.07]}]",
    "training.epochs=4",
    "evaluation.images=80",
    "evaluation.methods=[grad_cam, saliency]",
    "evaluation.metrics=[pixel_flipping_auc, complexity]",
]
TRIALS, CELLS, IMAGES = 4, 4, 80


class Stack:
    """A project of compose with passwords, ports and volumes of its own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"scl-ray-{secrets.token_hex(4)}"
        self.secrets = {name: secrets.token_hex(16) for name in PASSWORDS}
        self.ray, self.mlflow = _free_port(), _free_port()
        lines = {**self.secrets, "RAY_PORT": self.ray, "MLFLOW_PORT": self.mlflow, "WORKER_MEMORY": "5g"}
        self.settings = folder / "env"
        self.settings.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def command(self, *words: str) -> list[str]:
        options = ["--file", str(ROOT / "docker-compose.yml"), "--project-name", self.project]
        return [*_compose(), *options, "--env-file", str(self.settings), *words]

    def compose(self, *words: str) -> str:
        """What the command prints, which must succeed."""
        return _output(self.command(*words))

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def left(self) -> list[str]:
        """Containers, volumes and networks that there are of the project."""
        label = f"label=com.docker.compose.project={self.project}"
        lists = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        return [line for words in lists for line in _output(["docker", *words, "--quiet", "--filter", label]).split()]

    def mlflow_api(self, call: str, **parameters: Any) -> Any:
        account = ("admin", self.secrets["MLFLOW_PASSWORD"])
        url = f"http://127.0.0.1:{self.mlflow}/api/2.0/mlflow/{call}"
        if call.endswith("/search"):
            answer = requests.post(url, json=parameters, auth=account, timeout=60)
        else:
            answer = requests.get(url, params=parameters, auth=account, timeout=60)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("needs a Docker daemon")
    if not _compose():
        pytest.skip("needs docker compose, or docker-compose 1.29")
    stack = Stack(tmp_path_factory.mktemp("compose"))
    try:
        # Without a daemon's BuildKit too, as compose 1.29 has none.
        stack.compose("up", "--build", "--detach", "--scale", "worker=2")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "20")
    assert stack.left() == []


def test_without_passwords_nothing_starts(stack: Stack) -> None:
    for name in PASSWORDS:
        lines = [line for line in stack.settings.read_text().splitlines() if not line.startswith(name)]
        lacking = stack.settings.with_name("lacking")
        lacking.write_text("\n".join([*lines, f"{name}="]))
        command = stack.command("config")
        command[command.index(str(stack.settings))] = str(lacking)
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN)
        assert done.returncode != 0
        assert ".env.example" in done.stderr


def test_everything_is_published_on_this_machine_alone(stack: Stack) -> None:
    published = []
    for container in _output(["docker", "ps", "--quiet", "--filter", f"name={stack.project}"]).split():
        ports = json.loads(_output(["docker", "inspect", "--format", "{{json .NetworkSettings.Ports}}", container]))
        published += [place for places in ports.values() for place in places or []]
    assert {place["HostIp"] for place in published} == {"127.0.0.1"}
    assert {int(place["HostPort"]) for place in published} == {stack.ray, stack.mlflow}


def test_no_container_runs_as_root(stack: Stack) -> None:
    for service in ("head", "worker", "mlflow"):
        for container in stack.containers(service):
            assert _output(["docker", "exec", container, "id", "-u"]).strip() == "1000"
            written = subprocess.run(["docker", "exec", container, "touch", "/app/a"], capture_output=True, text=True)
            assert "Read-only file system" in written.stderr
    (postgres,) = stack.containers("postgres")
    owner = _output(["docker", "exec", postgres, "stat", "--format", "%U", "/proc/1"])
    assert owner.strip() == "postgres"


def test_strangers_are_refused(stack: Stack) -> None:
    jobs = f"http://127.0.0.1:{stack.ray}/api/jobs/"
    _until(lambda: requests.get(jobs, timeout=60).status_code == 401)
    assert requests.get(jobs, headers={"Authorization": "Bearer another"}, timeout=60).status_code in (401, 403)
    ours = {"Authorization": f"Bearer {stack.secrets['RAY_AUTH_TOKEN']}"}
    assert requests.get(jobs, headers=ours, timeout=60).status_code == 200
    # With another token no node joins, and so no driver.
    joining = stack.command("run", "--rm", "-T", "-e", "RAY_AUTH_TOKEN=another", "sweep", "true")
    assert subprocess.run(joining, capture_output=True, timeout=WITHIN).returncode != 0

    search = f"http://127.0.0.1:{stack.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    _until(lambda: requests.get(search, timeout=60).status_code == 401)
    assert requests.get(search, auth=("admin", "another"), timeout=60).status_code == 401
    account = ("admin", stack.secrets["MLFLOW_PASSWORD"])
    assert requests.get(search, auth=account, timeout=60).status_code == 200
    assert requests.get(search, auth=account, headers={"Host": "elsewhere"}, timeout=60).status_code == 403


def test_two_sweeps_share_the_cluster_and_outlive_a_worker(stack: Stack, tmp_path: Path) -> None:
    _until(lambda: _healthy(stack, "worker") == 2 and _healthy(stack, "mlflow") == 1)
    demo = ["python", "sweeps/full_grid.py", "--address", "auto", "--config", "sweeps/demo.yaml"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    log = tmp_path / "log"
    with log.open("w") as output:
        command = stack.command("run", "--rm", "-T", "sweep", *demo, *settings)
        sweep = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        (head,) = stack.containers("head")
        records = ["docker", "exec", head, "sh", "-c", "ls runs/demo/trials 2>/dev/null | wc -l"]
        _until(lambda: sweep.poll() is not None or int(_output(records)) > 0)
        assert sweep.poll() is None, log.read_text()
        # The other sweep comes through Ray's job server, from outside.
        other = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address",
             f"http://127.0.0.1:{stack.ray}", "--no-wait", "--submission-id", "other", "--",
             *demo, "--name", "other", "--set", "grid.objective=cross_entropy", "--set", "grid.seed=0", *settings[2:]],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": stack.secrets["RAY_AUTH_TOKEN"]},
            cwd=tmp_path, capture_output=True, text=True, timeout=WITHIN,
        )  # fmt: skip
        assert other.returncode == 0, other.stderr
        _until(lambda: sweep.poll() is not None or _measured(stack) >= METRICS.keys() - {"scl_ray_retries_total"})
        assert sweep.poll() is None, log.read_text()
        _output(["docker", "kill", stack.containers("worker")[0]])
        assert sweep.wait(WITHIN) == 0, log.read_text()
    finally:
        sweep.kill()
        sweep.wait()
    job = f"http://127.0.0.1:{stack.ray}/api/jobs/other"
    ours = {"Authorization": f"Bearer {stack.secrets['RAY_AUTH_TOKEN']}"}
    ended = ("SUCCEEDED", "FAILED", "STOPPED")
    _until(lambda: requests.get(job, headers=ours, timeout=60).json()["status"] in ended)
    about = requests.get(job, headers=ours, timeout=60).json()
    logs = requests.get(f"{job}/logs", headers=ours, timeout=60).json()["logs"]
    assert about["status"] == "SUCCEEDED", f"{about['message']}\n{logs}"

    _parquet_is_whole(head, tmp_path)
    _mlflow_knows(stack)
    _postgres_holds(stack)


def _measured(stack: Stack) -> set[str]:
    """The sweep's metrics that Prometheus would find where its driver runs."""
    of_project = ["--filter", f"label=com.docker.compose.project={stack.project}"]
    driver = ["docker", "ps", "--quiet", "--filter", "label=com.docker.compose.service=sweep", *of_project]
    (container,) = _output(driver).split()
    read = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8080/metrics').read().decode())"
    lines = _output(["docker", "exec", container, "python", "-c", read]).splitlines()
    ours = [line.removeprefix("ray_") for line in lines if 'sweep="demo"' in line]
    return {name for name in METRICS for line in ours if line.startswith(name)}


def _parquet_is_whole(head: str, folder: Path) -> None:
    _output(["docker", "cp", f"{head}:/app/runs", str(folder / "runs")])
    for name, trials in (("demo", TRIALS), ("other", 1)):
        scores = results.load(str(folder / "runs"), name)
        assert len(scores) == trials * CELLS * IMAGES
        assert not scores.duplicated(["trial", "image", "method", "metric"]).any()
        assert not len(results.missing(str(folder / "runs"), name))
        store = open_store(str(folder / "runs"), name)
        assert all(store.is_trained(trial) for trial in scores.trial.unique())
        assert Path(folder, "runs", name, "report/index.html").stat().st_size > 10_000


def _mlflow_knows(stack: Stack) -> None:
    experiments = stack.mlflow_api("experiments/search", max_results=10)["experiments"]
    ids = {experiment["name"]: experiment["experiment_id"] for experiment in experiments}
    assert {"demo", "other"} <= ids.keys()
    runs = stack.mlflow_api("runs/search", experiment_ids=[ids["demo"]], max_results=100)["runs"]
    assert len(runs) == TRIALS + 1
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    of = {next((tag["value"] for tag in run["data"]["tags"] if tag["key"] == "trial"), ""): run for run in runs}
    assert len(of) == TRIALS + 1
    metrics = {metric["key"] for trial, run in of.items() if trial for metric in run["data"]["metrics"]}
    assert "faithfulness/pixel_flipping_auc/grad_cam" in metrics
    report = stack.mlflow_api("artifacts/list", run_id=of[""]["info"]["run_id"], path="report")["files"]
    assert "report/index.html" in {file["path"] for file in report}


def _postgres_holds(stack: Stack) -> None:
    (postgres,) = stack.containers("postgres")

    def ask(sql: str) -> list[str]:
        return _output(["docker", "exec", postgres, "psql", "-U", "mlflow", "-At", "-c", sql]).split()

    assert ask("SELECT count(*) FROM runs WHERE status = 'FINISHED'") == [str(TRIALS + 1 + 2)]
    assert ask("SELECT username FROM users") == ["admin"]
    assert int(ask("SELECT count(*) FROM metrics")[0]) > 100


def _healthy(stack: Stack, service: str) -> int:
    state = ["docker", "inspect", "--format", "{{.State.Health.Status}}"]
    return sum(_output([*state, container]).strip() == "healthy" for container in stack.containers(service))


def _until(done: Any) -> None:
    deadline = time.monotonic() + WITHIN
    while True:
        try:
            if done():
                return
        except requests.ConnectionError:
            pass  # it has not begun to listen
        assert time.monotonic() < deadline
        time.sleep(1)


def _compose() -> list[str]:
    """The command of compose 2 or, without it, of 1.29; nothing where there is neither."""
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
