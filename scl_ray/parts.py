"""A sweep's parts: which cells of which images a Parquet file holds, and what a set of them leaves missing."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from scl_ray.config import Cell, digest

_PART = re.compile(r"(?P<holds>\w+)-(?P<first>\d{6,})-(?P<last>\d{6,})\.parquet")


class Versioned(NamedTuple):
    """A cell together with the version of its definition."""

    cell: Cell
    version: str


class Part(NamedTuple):
    """One Parquet file: its evaluation's hash or its read-out, and the ranks *first* to *last*, inclusive."""

    path: str
    holds: str
    first: int
    last: int


class Shard(NamedTuple):
    """One task of evaluation: ranks *first* to *last*, inclusive, of the dataset's evaluation order.

    ``cells`` are scored, the predictions of ``readouts`` are written, and every attribution map of the methods of
    ``maps`` is kept.
    """

    first: int
    last: int
    cells: tuple[Versioned, ...]
    readouts: tuple[str, ...]
    maps: tuple[Versioned, ...] = ()

    @property
    def images(self) -> int:
        return self.last - self.first + 1


def parts_of(names: Iterable[str]) -> list[Part]:
    return [part for part in map(part_of, sorted(names)) if part is not None]


def part_of(path: str) -> Part | None:
    """The part that *path* names, or None where it is no part's name."""
    name = _PART.fullmatch(path.rsplit("/", 1)[-1])
    return Part(path, name["holds"], int(name["first"]), int(name["last"])) if name else None


def evaluation(cells: Iterable[Versioned]) -> str:
    """12 hex digits that stand for a set of cells with their versions."""
    return digest(sorted([*v.cell, v.version] for v in cells))


def gaps(held: Iterable[tuple[int, int]], images: int, step: int) -> Sequence[tuple[int, int]]:
    """The inclusive ranges of 0..images-1 that *held* does not cover, cut on multiples of *step*."""
    return _gaps(tuple(held), images, step)


@lru_cache
def _gaps(held: tuple[tuple[int, int], ...], images: int, step: int) -> Sequence[tuple[int, int]]:
    # Most cells of most trials are held on the same ranges.
    found, position = [], 0
    for first, last in [*sorted(held), (images, images)]:
        while position < min(first, images):
            end = min(first, images, (position // step + 1) * step)
            found.append((position, end - 1))
            position = end
        position = max(position, last + 1)
    return tuple(found)


def missing_shards(held: Mapping[Any, Sequence[tuple[int, int]]], wanted: Sequence[Versioned], readouts: Sequence[str],
                   images: int, step: int, save_maps: bool) -> list[Shard]:  # fmt: skip
    """Wanted minus held, as ranges cut on multiples of *step*.

    *held* gives the ranges of each cell, of each read-out and, for attribution maps, of each ``("map", method)``.
    """
    # A method's map is the same whichever metric is scored on it: one cell stands for it.
    maps = {("map", v.cell.method): v for v in reversed(wanted)} if save_maps else {}
    by_range: dict[tuple[int, int], set[Any]] = defaultdict(set)
    for item in (*wanted, *readouts, *maps):
        for span in gaps(held.get(item, ()), images, step):
            by_range[span].add(item)
    return [
        Shard(first, last, tuple(v for v in wanted if v in items), tuple(r for r in readouts if r in items),
              tuple(versioned for item, versioned in maps.items() if item in items))
        for (first, last), items in sorted(by_range.items())
    ]  # fmt: skip


def rows_of(table: pa.Table, cells: Sequence[Versioned]) -> pa.Table:
    """The rows of *table* that belong to *cells*; where it has no metric, to their methods."""
    keys = ["method", "metric"] if "metric" in table.column_names else ["method"]
    wanted = pa.table({
        "method": pa.array([v.cell.method for v in cells]), "metric": pa.array([v.cell.metric for v in cells])
    }).select(keys).group_by(keys).aggregate([])  # fmt: skip
    plain = table.select(keys).cast(pa.schema([(key, pa.string()) for key in keys]))
    numbered = plain.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    found = numbered.join(wanted, keys, join_type="left semi")
    return table.take(found["row"].sort())
