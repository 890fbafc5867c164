"""What is killed in the middle goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import cluster
from clusters import run as run_on
from conftest import ROOT, Outcome, small

from scl_ray.store import open_store

Run = Callable[..., Outcome]


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "runs"
    one = ["grid.seed=0", "grid.objective=cross_entropy", "training.epochs=6", "evaluation.images=20"]
    cheap = ["evaluation.methods=grad_cam", "evaluation.metrics=complexity", "evaluation.protocol=corrected"]
    settings = small(*one, *cheap)
    command = [sys.executable, str(ROOT / "sweeps/full_grid.py"), *settings, "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list((out / "demo/checkpoints").glob("*/resume.pt")):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.2)
    finally:
        # The driver and the embedded Ray it started.
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = run(*settings, "--out", out)
    assert done.code == 0, done.error
    (record,) = [json.loads(path.read_text()) for path in (out / "demo/trials").iterdir()]
    assert [row["epoch"] for row in record["epochs"]] == list(range(1, 7))
    # Epochs before the kill were kept, not trained again: the file that resuming needs was there at the start.
    assert not list((out / "demo").rglob("resume.pt"))
    assert open_store(str(out), "demo").is_trained(record["trial"])


def test_a_lost_worker_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and a shard that kill their worker once are run again; one that always does is given up and named."""
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n\n"
        "def once(name):\n"
        "    mark = Path(os.environ['DEADLY'], name)\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "def loss(embeddings, labels):\n"
        "    once('training')\n"
        "    return embeddings.var()\n\n"
        "def metric(model, images, targets, maps):\n"
        "    once('shard')\n"
        "    return maps.flatten(1).mean(1)\n\n"
        "def always(embeddings, labels):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DEADLY", str(tmp_path))
    with cluster(num_cpus=2) as address:
        settings = ["grid.seed=0", "grid.objective=['deadly:loss', 'deadly:always']"]
        settings += ["evaluation.metrics=['deadly:metric', complexity]"]
        code, root = run_on(tmp_path / "runs", address, *settings)
    assert (tmp_path / "training").exists()
    assert (tmp_path / "shard").exists()
    records = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    by_objective = {record["configuration"]["objective"]["name"]: record for record in records}
    assert code == 1
    assert by_objective["deadly:loss"]["status"] == "trained"
    assert by_objective["deadly:always"]["status"] == "failed"
    assert "3 times" in by_objective["deadly:always"]["error"]
    assert len(list((root / "scores").rglob("*.parquet"))) == 1
