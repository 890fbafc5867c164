"""The store: whole parts, what they hold, what is missing."""

import errno
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import object_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scl_ray import checkpoint, sealing, storage
from scl_ray.config import Cell, InputError
from scl_ray.parts import Shard, Versioned, evaluation
from scl_ray.sealing import Damaged
from scl_ray.storage import StorageError
from scl_ray.store import SCHEMA, Store, open_store

COMPLEXITY = Versioned(Cell("grad_cam", "complexity"), "1.1")
SPARSENESS = Versioned(Cell("grad_cam", "sparseness"), "1.1")
SALIENCY = Versioned(Cell("saliency", "complexity"), "1.1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), "demo")


def scores(first: int, last: int, cells: list[Versioned]) -> pa.Table:
    rows = [(image, *v.cell, image + 0.5) for v in cells for image in range(first, last + 1)]
    image, method, metric, value = zip(*rows, strict=True)
    return pa.table({
        "image": pa.array(image, pa.int32()), "method": pa.array(method).dictionary_encode(),
        "metric": pa.array(metric).dictionary_encode(), "value": pa.array(value, pa.float32()),
    })  # fmt: skip


def write(store: Store, first: int, last: int, cells: list[Versioned]) -> None:
    store.write_part("scores", "t1", evaluation(cells), first, last, scores(first, last, cells), cells)


def test_a_part_says_what_it_holds(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY, SPARSENESS])
    (part,) = store.parts("scores", "t1")
    assert (part.holds, part.first, part.last) == (evaluation([SPARSENESS, COMPLEXITY]), 0, 63)
    assert store.cells(part) == (COMPLEXITY, SPARSENESS)
    table = pq.read_table(part.path)
    assert table.column_names == ["trial", "image", "method", "metric", "value"]
    assert table.schema.field("trial").type == pa.string()
    assert set(table["trial"].to_pylist()) == {"t1"}
    assert table.num_rows == 128


def test_missing_is_wanted_minus_held(store: Store) -> None:
    everything = store.missing("t1", [COMPLEXITY, SPARSENESS], ["own_layer"], 100, 64)
    assert everything == [
        Shard(0, 63, (COMPLEXITY, SPARSENESS), ("own_layer",)),
        Shard(64, 99, (COMPLEXITY, SPARSENESS), ("own_layer",)),
    ]
    write(store, 0, 63, [COMPLEXITY])
    predictions = pa.table({"image": pa.array(range(64), pa.int32())})
    store.write_part("predictions", "t1", "own_layer", 0, 63, predictions)
    assert store.missing("t1", [COMPLEXITY, SPARSENESS], ["own_layer"], 100, 64) == [
        Shard(0, 63, (SPARSENESS,), ()),
        Shard(64, 99, (COMPLEXITY, SPARSENESS), ("own_layer",)),
    ]
    # More images, another shard size: what is held is not computed again.
    write(store, 64, 99, [COMPLEXITY])
    assert store.missing("t1", [COMPLEXITY], [], 150, 128) == [
        Shard(100, 127, (COMPLEXITY,), ()), Shard(128, 149, (COMPLEXITY,), ()),
    ]  # fmt: skip
    assert store.missing("t1", [COMPLEXITY], [], 80, 64) == []


def test_another_version_of_a_metric_is_another_cell(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY, SPARSENESS])
    newer = COMPLEXITY._replace(version="1.2")
    assert store.missing("t1", [newer, SPARSENESS], [], 64, 64) == [Shard(0, 63, (newer,), ())]


def test_all_maps_are_wanted_only_when_asked_for(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY])
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == []
    assert store.missing("t1", [COMPLEXITY], [], 64, 64, save_maps=True) == [Shard(0, 63, (), (), (COMPLEXITY,))]
    maps = pa.table({"image": pa.array(range(16), pa.int32()), "method": pa.array(["grad_cam"] * 16)})
    store.write_part("samples", "t1", evaluation([COMPLEXITY]), 0, 15, maps, [COMPLEXITY])
    assert store.missing("t1", [COMPLEXITY], [], 64, 64, save_maps=True) == [Shard(16, 63, (), (), (COMPLEXITY,))]


def test_superseded_rows_go_and_the_others_stay(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY, SPARSENESS])
    write(store, 0, 63, [SALIENCY])
    newer = COMPLEXITY._replace(version="1.2")
    write(store, 0, 63, [newer])
    store.remove_superseded(["t1"], [newer, SPARSENESS])
    held = {versioned for part in store.parts("scores", "t1") for versioned in store.cells(part)}
    # A cell that this run does not want is left alone: another configuration may want it.
    assert held == {newer, SPARSENESS, SALIENCY}
    assert sum(pq.read_metadata(part.path).num_rows for part in store.parts("scores", "t1")) == 3 * 64


def test_writing_is_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a/b", b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "FULL_PATIENCE", 0.0)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"/a/b: No space"):
        store.write("a/b", b"after")
    assert store.read("a/b") == b"before"
    assert [path.name for path in Path(store.path("a")).iterdir()] == ["b"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_disk_that_is_full_or_away_for_a_while_is_tried_again(
    number: int, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(number, os.strerror(number))] * 2
    sync = os.fsync

    def often(file: int) -> None:
        if failures:
            raise failures.pop()
        sync(file)

    monkeypatch.setattr(storage, "WAITS", (0.01, 0.01))
    monkeypatch.setattr("os.fsync", often)
    store.write("a/b", b"at last")
    assert store.read("a/b") == b"at last"
    assert [path.name for path in Path(store.path("a")).iterdir()] == ["b"]
    assert caplog.text.count(os.strerror(number)) == 2


def test_what_would_fail_again_is_not_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def denied(*_: object) -> None:
        tries.append(1)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.fsync", denied)
    with pytest.raises(StorageError, match=r"/a/b: Permission denied"):
        store.write("a/b", b"x")
    assert len(tries) == 1


def test_records_and_checkpoints(store: Store) -> None:
    assert store.record("t1") is None
    assert not store.is_trained("t1")
    store.write_record("t1", {"status": "trained"})
    assert not store.is_trained("t1")
    weights = store.write_checkpoint("t1", {"checkpoint.json": b"{}", "weights.safetensors": b"w"})
    assert not store.is_trained("t1")  # what was known was of another network
    store.write_record("t1", {"status": "trained", "weights_sha256": weights})
    assert store.is_trained("t1")
    assert store.read_checkpoint("t1")["weights.safetensors"] == b"w"
    store.remove("checkpoints/t1")
    assert not store.is_trained("t1")
    store.remove("checkpoints/t1")


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "stat": lambda store: store.is_trained("t1"),
    "lstat": lambda store: store.remove("trials/t1.json"),
    "scandir": lambda store: store.parts("scores", "t1"),
    "remove": lambda store: store.drop_checkpoint("t1"),
}


@pytest.mark.parametrize("call", OPERATIONS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_is_away_is_not_one_without_the_file(
    call: str, number: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = store.write_checkpoint("t1", {"checkpoint.json": b"{}", "weights.safetensors": b"w"})
    store.write_record("t1", {"status": "trained", "weights_sha256": weights})
    write(store, 0, 63, [COMPLEXITY])
    real, failures = getattr(os, call), [OSError(number, os.strerror(number))]

    def fails(path: object, *args: object, **kwargs: object) -> object:
        if "demo" in str(path) and failures:
            raise failures[0]
        return real(path, *args, **kwargs)

    monkeypatch.setattr(storage, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(storage, "PATIENCE", 0.05)
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StorageError, match=rf"/demo/.*1.*: .*{os.strerror(number)}, for 0\.05 s"):
        OPERATIONS[call](store)
    monkeypatch.setattr(time, "sleep", lambda _: failures.clear())
    monkeypatch.setattr(storage, "PATIENCE", 5.0)
    OPERATIONS[call](store)
    assert not failures
    assert store.is_trained("t1") is (call in ("stat", "scandir"))
    assert len(store.parts("scores", "t1")) == 1


def test_what_exists(store: Store) -> None:
    store.write("a/b", b"")
    assert [store.exists(path) for path in ("a", "a/b", "a/c", "a/b/c")] == [True, True, False, False]
    store.remove("a/b/c")
    assert store.read("a/b/c") is None
    store.remove("a")
    assert not store.exists("a")


def test_what_may_not_be_removed_is_named() -> None:
    with object_store.serving():
        bucket = object_store.new_bucket()
        store = open_store(bucket, "demo")
        for name in ("t1/one", "t1/two", "t2/one"):
            store.write(f"scores/{name}", b"content")
        object_store.deny_deletion(bucket, "demo/scores/t1/two")
        for path in ("scores/t1/two", "scores/t1"):
            with pytest.raises(StorageError, match=rf"^{bucket}/demo/{path}: cannot be removed: .*Forbidden$"):
                store.remove(path)
        assert store.exists("scores/t1/two")
        assert not store.exists("scores/t1/one")
        store.remove("scores/t2")
        assert not store.exists("scores/t2")
        store.remove("scores/t2")


def test_every_changed_byte_of_a_part_is_found(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY, SPARSENESS])
    (part,) = store.parts("scores", "t1")
    whole = Path(part.path).read_bytes()
    assert store.problem(part.path) is None
    # Data pages and their headers, the footer, its length and the magic bytes at both ends.
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        assert sealing.problem(io.BytesIO(changed)), f"byte {place} of {len(whole)}"


def test_a_part_that_is_cut_short_is_found(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY])
    (part,) = store.parts("scores", "t1")
    whole = Path(part.path).read_bytes()
    assert all(sealing.problem(io.BytesIO(whole[:length])) for length in range(len(whole)))
    assert sealing.problem(io.BytesIO(whole + b"PAR1"))


def test_a_part_without_a_checksum_is_held_when_its_footer_can_be_read(store: Store) -> None:
    about = {"schema": 1, "trial": "t1", "cells": [[*COMPLEXITY.cell, COMPLEXITY.version]]}
    older = scores(0, 63, [COMPLEXITY]).replace_schema_metadata({"scl_ray": json.dumps(about)})
    path = Path(store.path("scores/t1", f"{evaluation([COMPLEXITY])}-000000-000063.parquet"))
    path.parent.mkdir(parents=True)
    pq.write_table(older, path)
    assert store.problem(str(path)) is None
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == []
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + whole[-99:])
    assert store.problem(str(path)) == "its footer is damaged"


def test_a_footer_that_cannot_be_read_holds_nothing(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY])
    (part,) = store.parts("scores", "t1")
    Path(part.path).write_bytes(Path(part.path).read_bytes()[:200])
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == [Shard(0, 63, (COMPLEXITY,), ())]
    with pytest.raises(Damaged, match=r"-000000-000063\.parquet: its footer is damaged; run the sweep again"):
        store.cells(part)


def test_what_a_newer_version_wrote_is_refused(store: Store) -> None:
    newer = rf"was written by a newer scl_ray \(schema {SCHEMA + 1}, this one reads up to {SCHEMA}\); upgrade scl_ray"
    store.write_json("plan.json", {"schema": SCHEMA + 1})
    with pytest.raises(InputError, match=rf"plan\.json: {newer}"):
        store.read_json("plan.json")
    store.write_json("trials/t1.json", {"schema": SCHEMA + 1})
    with pytest.raises(InputError, match=rf"trials/t1\.json: {newer}"):
        store.record("t1")
    store.write_table("scores/t1/a-000000-000063.parquet", scores(0, 63, [COMPLEXITY]),
                      {"schema": SCHEMA + 1, "cells": []})  # fmt: skip
    with pytest.raises(InputError, match=rf"\.parquet: {newer}"):
        store.missing("t1", [COMPLEXITY], [], 64, 64)


def test_a_damaged_checkpoint_is_found(store: Store) -> None:
    weights = b"weights" * 1000
    files = {"weights.safetensors": weights, "checkpoint.json": json.dumps(checkpoint.identity(weights)).encode()}
    store.write_checkpoint("t1", files)
    path = Path(store.path("checkpoints/t1/weights.safetensors"))
    assert store.checkpoint_problem("t1") is None
    assert store.read_checkpoint("t1") == files
    path.write_bytes(weights[:-1] + b"x")
    with pytest.raises(Damaged, match=r"checkpoints/t1: the checksum of weights\.safetensors differs; run the sweep"):
        store.read_checkpoint("t1")
    path.write_bytes(weights[:5000])
    assert store.checkpoint_problem("t1") == "weights.safetensors has 5,000 bytes for 7,000"
    path.unlink()
    assert store.checkpoint_problem("t1") == "weights.safetensors is missing"
    store.write("checkpoints/t1/checkpoint.json", b"{")
    assert store.checkpoint_problem("t1") == "checkpoint.json is damaged"


def test_results_of_other_weights_go(store: Store) -> None:
    """A trial that is trained again to the same weights keeps its scores; two networks' scores never mix."""

    def train(weights: bytes) -> None:
        digest = store.write_checkpoint("t1", {"weights.safetensors": weights, "checkpoint.json": b"{}"})
        store.write_record("t1", {"status": "trained", "weights_sha256": digest})

    train(b"one")
    write(store, 0, 63, [COMPLEXITY])
    train(b"one")
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == []
    # Whose results they are is known although training went wrong meanwhile.
    store.drop_checkpoint("t1")
    store.write_record("t1", {"status": "failed"})
    train(b"one")
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == []
    store.write_record("t1", {"status": "failed"})
    train(b"another")
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == [Shard(0, 63, (COMPLEXITY,), ())]
    # Where it is not known, as in stores from before there were checksums, they go too.
    write(store, 0, 63, [COMPLEXITY])
    store.remove("trials/t1.json")
    train(b"another")
    assert store.missing("t1", [COMPLEXITY], [], 64, 64) == [Shard(0, 63, (COMPLEXITY,), ())]


def test_between_two_networks_no_moment_calls_the_new_one_trained(store: Store) -> None:
    """A kill after the checkpoint is whole and before its record is would else leave the record of another network."""
    store.write_record("t1", {"status": "trained", "weights_sha256": "of another"})
    store.write_checkpoint("t1", {"weights.safetensors": b"w", "checkpoint.json": b"{}"})
    assert not store.is_trained("t1")


def test_what_is_kept_of_a_part_is_checked_before_it_gets_a_new_checksum(store: Store) -> None:
    write(store, 0, 63, [COMPLEXITY, SPARSENESS])
    (part,) = store.parts("scores", "t1")
    whole = bytearray(Path(part.path).read_bytes())
    whole[20] ^= 1
    Path(part.path).write_bytes(whole)
    with pytest.raises(Damaged, match=r"-000000-000063\.parquet: its checksum differs; run the sweep again"):
        store.keep("scores", "t1", part, [COMPLEXITY], part.last)
    assert Path(part.path).read_bytes() == whole
    assert store.parts("scores", "t1") == [part]


def test_a_store_is_named_as_users_write_it(store: Store, tmp_path: Path) -> None:
    assert store.name == f"{tmp_path}/demo"
    remote = open_store("memory://runs", "demo")
    assert fsspec.core.url_to_fs(remote.name)[1] == remote.root
    remote.write("plan.json", b"{")
    with pytest.raises(InputError, match=r"^memory://.*/demo/plan\.json: is not JSON"):
        remote.read_json("plan.json")
    remote.remove("plan.json")


def test_what_resuming_takes_is_whole_or_nothing(store: Store) -> None:
    assert store.read_resume("t1") is None
    store.write_resume("t1", b"state" * 100)
    assert store.read_resume("t1") == b"state" * 100
    path = Path(store.path("checkpoints/t1/resume.pt"))
    whole = path.read_bytes()
    for changed in (whole[:-1], whole[:20], b"", whole[:300] + b"x" + whole[301:], b"x" + whole[1:]):
        path.write_bytes(changed)
        assert store.read_resume("t1") is None
    path.write_bytes(b"PK as torch wrote it before there were checksums")
    assert store.read_resume("t1") == path.read_bytes()


def test_a_record_that_is_cut_off_is_named_with_the_way_out(store: Store) -> None:
    store.write("trials/0a0000000000.json", b'{"status": "trai')
    with pytest.raises(InputError, match=r"trials/0a0000000000\.json: is not JSON .*; remove it and run"):
        store.is_trained("0a0000000000")


def test_an_unknown_filesystem_is_refused() -> None:
    with pytest.raises(InputError, match="--out nosuch://x: .*give a folder or an fsspec URI"):
        open_store("nosuch://x", "demo")
