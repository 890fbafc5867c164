"""Which rows of the store a sweep's plan covers: its cells in their current versions, its images, each row once."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from itertools import chain, pairwise
from operator import and_, or_
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from scl_ray import specs
from scl_ray.config import Cell
from scl_ray.parts import Part, gaps
from scl_ray.sealing import Damaged
from scl_ray.storage import StorageError
from scl_ray.store import KINDS, Store

Plan = Mapping[str, Any]  # plan.json

_SPEC = pa.dictionary(pa.int32(), pa.string())
SCORES = {"trial": pa.string(), "image": pa.int32(), "method": _SPEC, "metric": _SPEC, "value": pa.float32()}
PREDICTIONS = {"trial": pa.string(), "image": pa.int32(), "label": pa.int32(), "prediction": pa.int32(),
               "confidence": pa.float32()}  # fmt: skip
CURVES = {**SCORES, "step": pa.int32()}
MAPS = {"trial": pa.string(), "image": pa.int32(), "method": _SPEC, "height": pa.int32(), "width": pa.int32(),
        "map": pa.list_(pa.float16())}  # fmt: skip


def by_trial(store: Store, plan: Plan, kind: str, trials: Iterable[str]) -> dict[str, list[Part]]:
    """The parts of *kind* that begin within the plan's images, of each of the *trials* that has any."""
    held = store.parts_by_trial(kind, trials)
    found = {trial: [part for part in held[trial] if part.first < plan["images"]] for trial in held}
    return {trial: within for trial, within in found.items() if within}


def parts(store: Store, plan: Plan, kind: str, trials: Iterable[str]) -> dict[str, list[Part]]:
    """The same parts by what they hold, in a fixed order."""
    groups = defaultdict(list)
    for within in by_trial(store, plan, kind, trials).values():
        for part in within:
            groups[part.holds].append(part)
    return dict(sorted(groups.items()))


def cells(store: Store, plan: Plan, part: Part) -> list[Cell]:
    """The cells of a part that the plan wants, in the version that the plan wants."""
    wanted = {tuple(cell) for cell in plan["cells"]}
    return [v.cell for v in store.cells(part) if (*v.cell, v.version) in wanted]


def images_beyond(store: Store, plan: Plan, predictions: Mapping[str, Sequence[Part]]) -> list[int]:
    """Images past the plan's last rank, in parts that reach across it. A part's rows are in the order of the ranks."""
    across = {(p.first, p.last): p for group in predictions.values() for p in group if p.last >= plan["images"]}
    beyond: set[int] = set()
    for part in across.values():
        beyond.update(table(store, part, ["image"])["image"].to_pylist()[plan["images"] - part.first :])
    return sorted(beyond)


def repeated(groups: Iterable[tuple[Sequence[Cell | str], Sequence[Part]]]) -> bool:
    """Whether any cell, or read-out, is held twice on some image, given the parts of each group and what they hold: a
    kill between writing a part that supersedes another and removing that other one leaves both, and so do two drivers
    that cut their parts unlike."""
    held: dict[tuple[str, Cell | str], list[tuple[int, int]]] = defaultdict(list)
    for of_group, group in groups:
        for part in group:
            trial = part.path.rsplit("/", 2)[-2]
            for each in of_group:
                held[trial, each].append((part.first, part.last))
    return any(
        following[0] <= previous[1] for ranges in held.values() for previous, following in pairwise(sorted(ranges))
    )


@cache
def protocol_of(cell: Cell) -> str:
    """The protocol whose network a cell explains."""
    published = "published" in (specs.parse(spec)[1].get("protocol") for spec in cell)
    return "published" if published else "corrected"


def unscored(
    store: Store, plan: Plan, scores: Iterable[Part], predictions: Iterable[Part], readouts: Mapping[str, str]
) -> Iterator[tuple[Cell, int, int]]:  # fmt: skip
    """The plan's cells with the inclusive ranges of ranks on which a trial lacks their score, or the prediction that
    goes with it. *scores* and *predictions* are its parts, *readouts* its record's: the explained read-out by protocol.
    """
    held: dict[Cell | str, list[tuple[int, int]]] = defaultdict(list)
    wanted = {tuple(cell) for cell in plan["cells"]}
    for part in predictions:
        held[part.holds].append((part.first, part.last))
    for part in scores:
        for versioned in store.held(part):
            if (*versioned.cell, versioned.version) in wanted:
                held[versioned.cell].append((part.first, part.last))
    images = plan["images"]
    for method, metric, _ in plan["cells"]:
        cell = Cell(method, metric)
        absent = [span for needed in (cell, readouts[protocol_of(cell)]) for span in gaps(held[needed], images, images)]
        # What lies between the gaps is whole; what lies between that is the gaps, joined where they overlap.
        for first, last in gaps(gaps(absent, images, images), images, images):
            yield cell, first, last


def table(store: Store, part: Part, columns: Sequence[str], wanted: ds.Expression | None = None) -> pa.Table:
    """Columns of one part, of all its rows or those *wanted*. Raises Damaged where it is not as it was written."""
    source = pa.BufferReader(store.fs.cat_file(part.path))
    try:
        rows = pq.ParquetFile(source, page_checksum_verification=True).read(list(columns), use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise Damaged(f"{store.uri(part.path)}: is damaged ({error})") from error
    return rows if wanted is None else rows.filter(wanted)


def scores(store: Store, part: Part, of: Sequence[Cell]) -> pa.Table:
    """What one part holds of these cells: image, method, metric, value."""
    is_all = len(of) == len(store.cells(part))
    return table(store, part, ["image", "method", "metric", "value"], None if is_all else _any_of(of, Cell._fields))


def _any_of(of: Iterable[Cell], keys: Iterable[str]) -> ds.Expression:
    return reduce(or_, [reduce(and_, [ds.field(key) == getattr(cell, key) for key in keys]) for cell in of])


def dataset(store: Store, group: Sequence[Part], columns: Mapping[str, pa.DataType]) -> ds.Dataset:
    """The parts as one Arrow dataset, on whatever filesystem they lie."""
    paths = sorted(part.path for part in group)
    verified = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    return ds.dataset(paths, schema=pa.schema(dict(columns)), filesystem=store.fs, format=verified)


@contextlib.contextmanager
def damage_named(store: Store, plan: Plan) -> Iterator[None]:
    """Raises Damaged, which names the file, for what reading a damaged part makes Arrow and DuckDB say."""
    try:
        yield
    except StorageError:  # the storage is away, and would be asked for every part
        raise
    except (pa.ArrowException, duckdb.InvalidInputException, duckdb.IOException, OSError) as error:
        for kind in KINDS:
            for part in chain.from_iterable(store.parts_by_trial(kind, plan["trials"]).values()):
                if why := store.problem(part.path):
                    raise Damaged(f"{store.uri(part.path)}: {why}") from error
        raise


def rows(
    store: Store, plan: Plan, kind: str, trials: Iterable[str], columns: Mapping[str, pa.DataType],
    wanted: ds.Expression | None = None,
) -> list[pa.Table]:  # fmt: skip
    """The rows of *kind* whose method, and metric where there is one, the plan covers, and that *wanted* selects."""
    keys = [name for name in ("method", "metric") if name in columns]
    tables = []
    for group in parts(store, plan, kind, trials).values():
        if covered := cells(store, plan, group[0]):
            selected = _any_of(covered, keys) if wanted is None else _any_of(covered, keys) & wanted
            with damage_named(store, plan):
                tables.append(dataset(store, group, columns).to_table(filter=selected))
    return tables
