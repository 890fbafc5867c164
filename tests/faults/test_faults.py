"""What is killed in the middle goes on where it was."""

import json
from pathlib import Path

import pytest
from clusters import cluster
from clusters import run as run_on


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
