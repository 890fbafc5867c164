"""What a configuration no longer wants: found whatever it is, and removed in an order that a kill does not hurt."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import object_store
import pyarrow as pa
import pytest
from conftest import DEMO
from rich.console import Console

from scl_ray import config, lock, plan, pruning, session
from scl_ray.config import InputError, Sweep
from scl_ray.datasets import Dataset
from scl_ray.parts import evaluation
from scl_ray.plan import SAMPLE
from scl_ray.storage import StorageError
from scl_ray.store import FAILURES, KINDS, Store, open_store

WIDE = [
    "grid.objective=[cross_entropy, {name: supcon, temperature: 0.07}]", "grid.seed=[0, 1]", "evaluation.images=200",
    "evaluation.methods=[grad_cam, saliency]", "evaluation.metrics=[complexity, pixel_flipping_auc]",
    "evaluation.protocol=[corrected, published]", "evaluation.save_maps=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with object_store.serving():
        yield


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, digits: Dataset) -> Store:
    """All that `WIDE` wants, of generated numbers, on a disk and on S3, which knows no folders."""
    if request.param == "folder":
        out = str(tmp_path)
    else:
        request.getfixturevalue("server")
        out = object_store.new_bucket()
    store = open_store(out, "demo")
    finish(store, digits, sweep())
    return store


def sweep(*overrides: str) -> Sweep:
    return config.load(DEMO, [*WIDE, *overrides])


def finish(store: Store, digits: Dataset, wanted: Sweep) -> None:
    planned = plan.make(wanted, digits, store, slots=1)
    store.write_json("plan.json", planned.record())
    for trial, work in planned.work.items():
        weights = store.write_checkpoint(trial, {"weights.safetensors": b"weights", "checkpoint.json": b"{}"})
        about = {"status": "trained", "weights_sha256": weights, "epochs": []}
        store.write_record(trial, planned.trial_record(work.trial) | about)
        for shard in work.shards:
            images = digits.evaluation_order[shard.first : shard.last + 1].astype("int32")
            for readout in shard.readouts:
                store.write_part("predictions", trial, readout, shard.first, shard.last, pa.table({"image": images}))
            rows = {key: [getattr(v.cell, key) for v in shard.cells for _ in images] for key in ("method", "metric")}
            table = pa.table({"image": list(images) * len(shard.cells), **rows})
            maps = pa.table(
                {"image": list(images) * 2, "method": ["grad_cam"] * len(images) + ["saliency"] * len(images)}
            )
            for kind, last, held in (("samples", shard.last, maps), ("scores", shard.last, table),
                                     ("curves", min(shard.last, SAMPLE - 1), table.slice(0, SAMPLE))):  # fmt: skip
                if kind != "curves" or shard.first < SAMPLE:
                    store.write_part(kind, trial, evaluation(shard.cells), shard.first, last, held, shard.cells)


def prune(store: Store, wanted: Sweep) -> None:
    pruning.prune(wanted, store.name.rsplit("/", 1)[0], Console(), remove=True)


def unwanted(store: Store, digits: Dataset, wanted: Sweep) -> list[pruning.Unwanted]:
    return pruning.unwanted(store, plan.make(wanted, digits, store, slots=1))


def files(store: Store) -> set[str]:
    return {path.removeprefix(store.path("")) for path in store.fs.find(store.root)}


@pytest.mark.parametrize(
    ("overrides", "reasons", "kinds"),
    [
        ([], set(), set()),
        (["grid.seed=0"], {"not in the grid"}, {*pruning.KINDS}),
        (["evaluation.metrics=complexity"], {"cells not wanted"}, {"scores", "curves", "samples"}),
        (["evaluation.methods=grad_cam"], {"cells not wanted"}, {"scores", "curves", "samples"}),
        (["evaluation.images=128"], {"past the images wanted"}, {"scores", "samples", "predictions"}),
        (["evaluation.save_maps=false"], {"maps not wanted"}, {"samples"}),
        (["evaluation.protocol=corrected"], {"cells not wanted", "read-out not wanted"},
         {"scores", "curves", "samples", "predictions"}),
    ],
)  # fmt: skip
def test_what_is_not_wanted_goes_and_nothing_is_missing_at_any_moment(
    store: Store, digits: Dataset, overrides: list[str], reasons: set[str], kinds: set[str]
) -> None:
    wanted = sweep(*overrides)
    before = files(store)
    found = unwanted(store, digits, wanted)
    assert {one.reason for one in found} == reasons
    assert {one.kind for one in found} == kinds
    for one in found:
        pruning.take_away(store, one, digits.evaluation_order[:SAMPLE].tolist())
        assert not plan.make(wanted, digits, store, slots=1).work
    assert unwanted(store, digits, wanted) == []
    gone = before - files(store)
    assert gone == {one.path.removeprefix(store.path("")) for one in found}
    # What stays of a part is what is wanted of it.
    planned = plan.make(wanted, digits, store, slots=1)
    for trial in planned.trials:
        for kind in ("scores", "samples"):
            parts = store.parts(kind, trial)
            assert {v for part in parts for v in store.cells(part)} == set(planned.cells)
            rows = sum(store.read_table(part.path).num_rows for part in parts)
            images = planned.images if kind == "scores" or wanted.evaluation.save_maps else SAMPLE
            methods = {v.cell.method for v in planned.cells if "published" not in v.cell.method}
            assert rows == images * (len(planned.cells) if kind == "scores" else len(methods))


def test_what_a_sweep_did_not_write_is_left_alone(store: Store, digits: Dataset) -> None:
    mine = ["notes.txt", "scores/notes.parquet", "scores/0123456789ab/notes.txt", "trials/notes.json",
            "checkpoints/0123456789ab/mine.pt", "scores/0123456789ab/deep/aa-000000-000063.parquet",
            "scores/0123456789ab-before/aa-000000-000063.parquet", "checkpoints/0123456789ab.json",
            "report/index.html", "sweep.yaml"]  # fmt: skip
    for path in mine:
        store.write(path, b"mine")
    store.write("trials/0123456789ab.json", b'{"status": "training", "label": "an old one"}')
    store.write("checkpoints/0123456789ab/resume.pt", b"state")
    found = unwanted(store, digits, sweep())
    assert [one.path.removeprefix(store.path("")) for one in found] == [
        "checkpoints/0123456789ab/resume.pt", "trials/0123456789ab.json",
    ]  # fmt: skip
    assert list(pruning.describe(store, found)) == [
        "an old one (0123456789ab): not in the grid: checkpoints, trials, 50 bytes",
        "not wanted: 50 bytes in 2 files of 1 trials",
    ]
    for one in found:
        pruning.take_away(store, one, [])
    assert {*mine} <= files(store)


def test_cells_of_an_older_version_go(store: Store, digits: Dataset) -> None:
    (trial, *_) = plan.make(sweep(), digits, store, slots=1).trials
    before = files(store)
    older = store.cells(store.parts("scores", trial)[0])[0]._replace(version="0")
    rows = pa.table({"image": [0], **{key: [getattr(older.cell, key)] for key in ("method", "metric")}})
    store.write_part("scores", trial, evaluation([older]), 0, 63, rows, [older])
    (found,) = unwanted(store, digits, sweep())
    assert (found.trial, found.kind, found.reason) == (trial, "scores", "cells not wanted")
    pruning.take_away(store, found, [])
    assert files(store) == before


def test_what_a_run_said_stays_while_its_plan_does(store: Store, digits: Dataset) -> None:
    planned = plan.make(sweep(), digits, store, slots=1)
    store.drop_checkpoint(next(iter(planned.trials)))  # as a trial's that failed
    session.write_plan(store, planned, digits)
    said = {"report/index.html", FAILURES}
    for path in said:
        store.write(path, b"{}")
    store.write("checkpoints/0123456789ab/resume.pt", b"state")
    before = files(store)
    prune(store, sweep())
    assert before - files(store) == {"checkpoints/0123456789ab/resume.pt"}
    prune(store, sweep("grid.seed=0"))
    assert not said & files(store)


def test_a_full_disk_gets_room(store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sweep("grid.seed=0", "evaluation.methods=grad_cam")
    found = unwanted(store, digits, wanted)
    strangers = {one.path for one in found if one.reason == "not in the grid"}
    assert 0 < len(strangers) < len(found)
    write = Store.write

    def write_where_there_is_room(to: Store, path: str, data: bytes) -> None:
        if strangers.intersection(to.fs.find(to.root)):
            raise StorageError(f"{path}: No space left on device")
        write(to, path, data)

    monkeypatch.setattr(Store, "write", write_where_there_is_room)
    prune(store, wanted)
    assert unwanted(store, digits, wanted) == []
    planned = plan.make(wanted, digits, store, slots=1)
    assert not planned.work
    assert store.read_json("plan.json") == planned.record()


def test_nothing_is_removed_under_a_run_that_has_no_plan_yet(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL", 0.2)  # on an object store, a holder lives when it is seen to renew
    store.remove("plan.json")
    before = files(store)
    with lock.held(store, lost=print), pytest.raises(InputError, match="is being written by"):
        prune(store, sweep("grid.seed=0"))
    assert before <= files(store)


def test_what_went_before_the_lock_was_taken_is_not_looked_for(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sweep("grid.seed=0")
    held = lock.held

    @contextlib.contextmanager
    def held_after_another(of: Store, lost: Callable[[str], None]) -> Iterator[str]:
        store.remove(f"scores/{unwanted(store, digits, wanted)[0].trial}")
        with held(of, lost=lost) as token:
            yield token

    monkeypatch.setattr(lock, "held", held_after_another)
    prune(store, wanted)
    assert unwanted(store, digits, wanted) == []


def test_without_the_dataset_nothing_can_be_told(tmp_path: Path) -> None:
    nowhere = config.load(DEMO, ["dataset={name: cifar10, root: nowhere, download: true}"])
    with pytest.raises(InputError, match="nowhere.*what is not wanted cannot be told"):
        pruning.prune(nowhere, str(tmp_path), Console(), remove=True)
    assert list(tmp_path.iterdir()) == []


def test_kinds_are_the_stores() -> None:
    assert {*KINDS, "checkpoints", "trials"} == {*pruning.KINDS}
