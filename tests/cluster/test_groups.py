"""Trials that several workers train, beside trials of one worker and shards, and trials that are stopped early."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from clusters import TINY, cluster, run
from conftest import DEMO

from scl_ray import config, datasets, plan
from scl_ray.cluster import driver, group, tasks
from scl_ray.config import InputError
from scl_ray.store import open_store
from scl_ray.training import Diverged

SMALL = ["dataset.image_size=16", "grid.seed=0"]

# Of two workers, the second one is killed once, some steps into the second epoch.
DEADLY = """
import os, signal
from pathlib import Path

def loss(embeddings, labels):
    rank, folder = os.environ["RANK"], Path(os.environ["SCL_RAY_TEST"])
    with open(folder / f"calls-{rank}", "a") as calls:
        calls.write(".")
    mark = folder / "killed"
    if rank == "1" and not mark.exists() and len((folder / "calls-1").read_text()) == 13:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return embeddings.var()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A cluster of two slots, for all tests of this file; its processes know the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCL_RAY_TEST", str(folder))
        with cluster(num_cpus=2) as address:
            yield address


def records(root: Path) -> dict[str, dict]:
    """The trials' records by the label of their objective."""
    found = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    return {record["objective_label"]: record for record in found}


def test_a_group_trains_beside_single_trials_and_goes_on_when_a_worker_is_killed(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(folder)
    objectives = "[{name: cross_entropy, label_smoothing: [0, 0.1]}, {name: 'deadly:loss', training: {workers: 2}}]"
    settings = [*SMALL, f"grid.objective={objectives}", "training.epochs=2"]
    code, root = run(folder / "runs", address, *settings)
    assert code == 0
    found = records(root)
    assert {label: record["workers"] for label, record in found.items()} == {
        "cross_entropy": 1, "cross_entropy label_smoothing=0.1": 1, "deadly:loss": 2,
    }  # fmt: skip
    assert [row["epoch"] for row in found["deadly:loss"]["epochs"]] == [1, 2]
    assert len(list((root / "scores").rglob("*.parquet"))) == 3
    assert not list(root.rglob("resume.pt"))
    # An epoch has ten steps: the first, two of the second (the third was never ended), and the second again.
    assert (folder / "killed").exists()
    assert len((folder / "calls-1").read_text()) == 10 + 3 + 10
    # The same trial as one worker's.
    digits = datasets.load(config.load(DEMO, [*TINY, *settings]).dataset)
    alone = config.load(DEMO, [*TINY, *settings, "grid.objective=['deadly:loss']"]).trials()[0]
    assert alone.identity(digits.fingerprint, digits.image_size) == found["deadly:loss"]["trial"]


def test_a_hopeless_trial_is_stopped_and_goes_on_when_the_rules_change(address: str, folder: Path) -> None:
    good, bad = "learning_rate: 0.05", "{name: cross_entropy, label_smoothing: 0.1, training: {learning_rate: 1.0e-9}}"
    rules = "early_stopping={grace_period: 0.5, reduction_factor: 2}"
    settings = [*SMALL, "training.epochs=4", "training.batch_size=32", "name=stopping", rules]
    only = f"grid.objective=[{{name: cross_entropy, training: {{{good}}}}}]"
    both = f"grid.objective=[{{name: cross_entropy, training: {{{good}}}}}, {bad}]"
    assert run(folder / "runs", address, *settings, only)[0] == 0
    # What an earlier run has trained is what the new trial is compared with.
    assert run(folder / "runs", address, *settings, both)[0] == 0
    root = folder / "runs/stopping"
    record = records(root)["cross_entropy label_smoothing=0.1"]
    assert record["status"] == "stopped"
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    assert "after epoch 2 of 4" in record["reason"]
    assert record["label"] in (root / "report/tables/failures.csv").read_text()
    assert len(list((root / "scores").rglob("*.parquet"))) == 1

    store = open_store(str(folder / "runs"), "stopping")
    for changed, work in ((rules, set()), ("early_stopping={reduction_factor: 3}", {record["trial"]}),
                          ("early_stopping=null", {record["trial"]})):  # fmt: skip
        sweep = config.load(DEMO, [*TINY, *settings, both, changed])
        dataset = datasets.load(sweep.dataset)
        assert set(plan.make(sweep, dataset, store, 2).work) == work
    threads = torch.get_num_threads()
    about, trial = plan.make(sweep, dataset, store, 2), sweep.trials()[1]
    steps = list(tasks.train(store, record["trial"], trial, about.trial_record(trial), dataset, {}, 1))
    torch.set_num_threads(threads)
    earlier = [row["epoch"] for row in steps[1]["earlier"]]
    assert earlier[:2] == [1, 2]  # it may have trained on until it heard of its end
    assert earlier + [step["epoch"] for step in steps if "epoch" in step] == [1, 2, 3, 4]
    assert store.is_trained(record["trial"])


def test_groups_that_cannot_be_are_refused() -> None:
    def check(*overrides: str, slots: int = 2, images: int = 1000) -> None:
        driver.check_workers(config.load(DEMO, [*TINY, *overrides]), images, slots)

    check("training.workers=2")
    with pytest.raises(InputError, match=r"training\.workers: 4 is more than the 2 slots"):
        check("training.workers=4")
    with pytest.raises(InputError, match="cannot share a batch of all 99 training images"):
        check("training.workers=2", images=99)
    with pytest.raises(InputError, match=r"resources\.train\.gpus: 0\.5 is not enough"):
        check("training.workers=2", "resources.train.gpus=0.5")


def test_what_a_worker_did_wrong_by_itself_is_told_from_what_a_lost_one_makes_others_raise() -> None:
    own: list[Exception] = [ValueError("shapes"), KeyError("name"), Diverged("the loss is not finite")]
    anybodys: list[Exception] = [RuntimeError("Connection closed by peer"), ConnectionResetError("peer"), MemoryError()]
    assert all(map(group._is_their_own, own))
    assert not any(map(group._is_their_own, [*anybodys, ray.exceptions.RayActorError()]))
