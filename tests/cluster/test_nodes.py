"""A cluster of three ``ray start`` processes on this machine, and the real command on it."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from conftest import ROOT, small
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.cluster_utils import Cluster

from scl_ray import datasets
from scl_ray.cluster import connection
from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.files import ImageFiles
from scl_ray.datasets.image_folder import squeezed

RAY = str(Path(sys.executable).with_name("ray"))
# Four short trials, so that three slots have something to share.
TINY = [
    "grid.objective=cross_entropy",
    "grid.seed=[0, 1, 2, 3]",
    "training.epochs=1",
    "evaluation.protocol=corrected",
    "evaluation.methods=grad_cam",
    "evaluation.metrics=complexity",
]
TOKEN = "0123456789abcdef0123456789abcdef"


def environment(token: str = TOKEN) -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def can_mask_folders() -> bool:
    return (
        os.getuid() == 0
        and shutil.which("unshare") is not None
        and (subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0)
    )


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the third node does not see."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def address(hidden: Path) -> Iterator[str]:
    """Head and two nodes with one CPU each; the third sees an empty folder where *hidden* is, if that can be done."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    head = [RAY, "start", "--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
    join = [RAY, "start", f"--address={address}"]
    mask = (
        ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh"] if can_mask_folders() else []
    )
    nodes = []
    try:
        for command in (head, join, [*mask, *join]):
            nodes.append(
                subprocess.Popen(
                    [*command, "--num-cpus=1", "--block"],
                    env=environment(),
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            for line in nodes[-1].stdout:
                if "--block" in line:
                    break
        yield address
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            try:
                node.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
            node.stdout.close()


def command(*arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    full = [
        sys.executable,
        ROOT / "sweeps/full_grid.py",
        *small(*TINY),
        *arguments,
    ]
    return subprocess.run(
        [str(part) for part in full], env=environment(token), capture_output=True, text=True, timeout=300
    )


def test_a_sweep_uses_every_node(address: str, tmp_path: Path) -> None:
    done = command("--address", "auto", "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 3 slots" in done.stdout
    root = tmp_path / "runs/demo"
    records = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    assert len(records) == 4
    assert len({record["node"] for record in records}) > 1
    assert len(list((root / "scores").rglob("*.parquet"))) == 8


def test_a_folder_that_another_node_cannot_read_is_refused(address: str, hidden: Path) -> None:
    if not can_mask_folders():
        pytest.skip("needs root and unshare, to hide a folder from one node")
    refused = command("--address", address, "--out", hidden / "runs")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "cannot use it" in refused.stderr
    assert "every node mounts" in refused.stderr
    assert not list(hidden.rglob("*.parquet"))


@pytest.fixture
def nodes_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has the nodes' token, which Ray would else remember beyond the test."""
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        reset_auth_token_state()
        yield
    reset_auth_token_state()


@pytest.mark.usefixtures("nodes_token")
def test_images_in_files_that_another_node_does_not_see_are_refused(address: str, hidden: Path, tmp_path: Path) -> None:
    def held(split: str, folder: Path) -> ImageFiles:
        names = [f"{split}-{number}.png" for number in range(3)]
        for name in names:
            (folder / name).write_text(name)
        return ImageFiles(folder, tuple(names), 8, squeezed, is_cut_when_read=False)

    digits = datasets.load(DatasetConfig(name="digits"))
    with connection.connected(address):
        connection.check_images(digits)
        seen = dataclasses.replace(digits, train_images=held("train", tmp_path), test_images=held("test", tmp_path))
        connection.check_images(seen)
        if not can_mask_folders():
            pytest.skip("needs root and unshare, to hide a folder from one node")
        unseen = dataclasses.replace(seen, test_images=held("test", hidden))
        with pytest.raises(InputError, match=r"dataset\.root: node .* does not see .*test-0\.png: No such file"):
            connection.check_images(unseen)


@pytest.mark.usefixtures("nodes_token")
def test_a_storage_is_tried_from_every_node(address: str, tmp_path: Path) -> None:
    with connection.connected(address):
        connection.check_storage(str(tmp_path), "demo")
        # What is in memory each process has for itself, as each node has its own credentials.
        with pytest.raises(InputError, match=r"--out memory://x: node .* cannot use it .*address and credentials"):
            connection.check_storage("memory://x", "demo")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_node_that_dies_while_it_is_asked_is_none_of_the_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 1})
    try:
        dying = cluster.add_node(num_cpus=1)
        doomed = dying.node_id

        @ray.remote
        def halts(*_: object) -> None:
            if ray.get_runtime_context().get_node_id() == doomed:
                asked.touch()
                time.sleep(300)

        def kill() -> None:
            while not asked.exists():
                time.sleep(0.05)
            cluster.remove_node(dying, allow_graceful=False)

        monkeypatch.setattr(connection, "_uses", halts)
        with connection.connected(cluster.address):
            killing = threading.Thread(target=kill, daemon=True)
            killing.start()
            connection.check_storage(str(tmp_path), "demo")
            killing.join()
    finally:
        cluster.shutdown()
    assert asked.exists()


def test_another_token_is_refused(address: str, tmp_path: Path) -> None:
    refused = command("--address", address, "--out", tmp_path / "runs", token="f" * 32)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "--address" in refused.stderr
    assert "Traceback" not in refused.stderr
