"""The store: whole parts, what they hold, what is missing."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scl_ray.config import Cell, InputError
from scl_ray.store import Shard, Store, Versioned, evaluation, gaps, open_store

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


def test_gaps_cover_exactly_what_is_not_held() -> None:
    chance = random.Random(0)
    for _ in range(300):
        images, step = chance.randint(1, 60), chance.randint(1, 20)
        held = []
        for _ in range(chance.randint(0, 5)):
            first = chance.randint(0, 70)
            held.append((first, first + chance.randint(0, 20)))
        covered = {rank for first, last in held for rank in range(first, last + 1)}
        found = list(gaps(held, images, step))
        ranks = [rank for first, last in found for rank in range(first, last + 1)]
        assert ranks == [rank for rank in range(images) if rank not in covered]
        # Cut on a fixed grid: no range reaches over a multiple of the step.
        assert all(first // step == last // step for first, last in found)


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
    store.remove_superseded("t1", [newer, SPARSENESS])
    held = {versioned for part in store.parts("scores", "t1") for versioned in store.cells(part)}
    # A cell that this run does not want is left alone: another configuration may want it.
    assert held == {newer, SPARSENESS, SALIENCY}
    assert sum(pq.read_metadata(part.path).num_rows for part in store.parts("scores", "t1")) == 3 * 64


def test_writing_is_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a/b", b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write("a/b", b"after")
    assert store.read("a/b") == b"before"
    assert [path.name for path in Path(store.path("a")).iterdir()] == ["b"]


def test_records_and_checkpoints(store: Store) -> None:
    assert store.record("t1") is None
    assert not store.is_trained("t1")
    store.write_record("t1", {"status": "trained"})
    assert not store.is_trained("t1")
    store.write_checkpoint("t1", {"checkpoint.json": b"{}", "weights.safetensors": b"w"})
    assert store.is_trained("t1")
    assert store.read_checkpoint("t1")["weights.safetensors"] == b"w"
    store.remove("checkpoints/t1")
    assert not store.is_trained("t1")
    store.remove("checkpoints/t1")


def test_a_record_that_is_cut_off_is_named_with_the_way_out(store: Store) -> None:
    store.write("trials/0a0000000000.json", b'{"status": "trai')
    with pytest.raises(InputError, match=r"trials/0a0000000000\.json: is not JSON .*; remove it and run"):
        store.is_trained("0a0000000000")


def test_an_unknown_filesystem_is_refused() -> None:
    with pytest.raises(InputError, match="--out nosuch://x: .*give a folder or an fsspec URI"):
        open_store("nosuch://x", "demo")
