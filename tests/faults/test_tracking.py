"""While MLflow is away, hangs or is locked, the sweep goes on; what it missed is written when it is back."""

import hashlib
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tracking.logged import Stored
from tracking.served import Server, wait
from undisturbed import assert_same

# What is another with every log: which runs and models MLflow made, and where.
OWN = ("mlflow.parentRunId", "network")
PATIENCE = 240.0  # seconds
INCOMPLETE = "MLflow lacks some of the log; the results are complete, and the same command logs the rest"


def logged(uri: str) -> dict[str, Any]:
    """All that MLflow holds of the sweep, by trial: parameters, every point of every metric, tags, inputs, artifacts
    and how many networks; ``""`` is the sweep's own run."""
    stored = Stored(uri, "faults")
    client, runs = stored.client, {"": stored.parent, **stored.trials}
    models = client.search_logged_models([stored.parent.info.experiment_id])
    assert all(run.data.tags["mlflow.parentRunId"] == stored.parent.info.run_id for run in stored.trials.values())
    return {
        trial: {
            "run": (run.info.run_name, run.info.status),
            "parameters": run.data.params,
            "metrics": {
                key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))
                for key in run.data.metrics
            },
            "tags": {key: value for key, value in run.data.tags.items() if key not in OWN},
            "data": [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs],
            "artifacts": files(client, run.info.run_id),
            "networks": sum(model.source_run_id == run.info.run_id for model in models),
        }
        for trial, run in runs.items()
    }


def files(client: Any, run_id: str) -> dict[str, str]:
    """Hashes of a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in client.list_artifacts(run_id):
            client.download_artifacts(run_id, entry.path, folder)
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def epochs(uri: str) -> int:
    """How many epochs of the first trial that has any MLflow holds; without MLflow's own client, which would wait."""
    with closing(sqlite3.connect(f"file:{uri.removeprefix('sqlite:///')}?mode=ro", uri=True)) as database:
        try:
            return database.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchone()[0]
        except sqlite3.OperationalError:  # it is being made, or written
            return 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the database for itself."""
    program = (
        "import sqlite3, sys\n"
        f"database = sqlite3.connect({str(path)!r}, timeout=120)\n"
        "database.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield
        holder.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is yet to be started; its database is ``server.db``."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--allowed-hosts", "127.0.0.1:*",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", tmp_path / "served",
    ]  # fmt: skip
    server = Server(f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.join(map(str, command))}", tmp_path)
    yield server
    server.kill()


def test_a_server_that_is_away_and_then_hangs_misses_nothing_for_good(
    gate, start: Callable, server: Server, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    address = {"MLFLOW_TRACKING_URI": server.address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    done = start("--out", out, "--set", "grid.objective=cross_entropy", **address).wait()  # nothing listens
    assert done.code == 0, done.out + done.error
    assert INCOMPLETE in done.out

    server.start()
    gate.close("training", after=15)  # in the second epoch
    command = start("--out", out, **address)
    gate.wait("training")
    wait(lambda: epochs(f"sqlite:///{tmp_path}/server.db"), PATIENCE)
    server.halt()
    gate.open("training")
    wait(lambda: "the sweep goes on" in command.out or not command.is_running(), PATIENCE)
    server.go_on()
    done = command.wait()
    assert done.code == 0, done.out + done.error
    assert "the sweep goes on" in done.out
    assert_same(out, undisturbed)

    done = start("--out", out, **address).wait()
    assert done.code == 0, done.out + done.error
    assert "MLflow lacks" not in done.out
    assert_complete(start, out, server.address, tmp_path)


def test_a_locked_database_misses_nothing_for_good(gate, start: Callable, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    database = out / "mlflow.db"
    gate.close("training", after=15)
    command = start("--out", out)
    gate.wait("training")
    wait(lambda: database.exists() and epochs(f"sqlite:///{database}"), PATIENCE)
    with locked(database):
        gate.open("training")
        done = command.wait()
        assert done.code == 0, done.out + done.error
        assert INCOMPLETE in done.out
        assert "database is locked" in done.out
    assert_same(out, undisturbed)

    done = start("--out", out).wait()
    assert done.code == 0, done.out + done.error
    assert "MLflow lacks" not in done.out
    assert_complete(start, out, f"sqlite:///{database}", tmp_path)


def assert_complete(start: Callable, out: Path, uri: str, folder: Path) -> None:
    """MLflow at *uri* holds of the sweep what another MLflow is told that was there all the time."""
    fresh = f"sqlite:///{folder}/fresh.db"
    done = start("--out", out, MLFLOW_TRACKING_URI=fresh).wait()
    assert done.code == 0, done.out + done.error
    wanted, found = logged(fresh), logged(uri)
    assert found.keys() == wanted.keys()
    for trial, run in wanted.items():
        assert len(run["artifacts"]) > 3 if not trial else run["networks"] == 1
        for what, value in run.items():
            assert found[trial][what] == value, f"{what} of {trial or 'the sweep'}"
