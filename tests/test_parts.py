"""What a set of parts leaves missing."""

import random

import pyarrow as pa

from scl_ray.config import Cell
from scl_ray.parts import Versioned, evaluation, gaps, part_of, rows_of


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


def test_a_part_is_known_by_its_name() -> None:
    part = part_of("demo/scores/0123456789ab/fedcba987654-000080-000159.parquet")
    assert part is not None
    assert part[1:] == ("fedcba987654", 80, 159)
    for name in (".fedcba987654-000080-000159.parquet.0a.partial", "fedcba987654-80-159.parquet", "notes.txt"):
        assert part_of(f"demo/scores/0123456789ab/{name}") is None


def test_an_evaluation_is_known_whatever_the_order_of_its_cells() -> None:
    cells = [Versioned(Cell("grad_cam", metric), "1") for metric in ("complexity", "sparseness")]
    assert evaluation(cells) == evaluation(cells[::-1])
    assert evaluation(cells) != evaluation([cells[0], cells[1]._replace(version="2")])
    assert evaluation(cells) != evaluation(cells[:1])


def test_the_rows_of_cells_keep_their_order() -> None:
    table = pa.table({
        "image": [0, 1, 0, 1, 0, 1], "method": ["a", "a", "b", "b", "a", "a"],
        "metric": ["x", "x", "x", "x", "y", "y"], "value": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    })  # fmt: skip
    wanted = [Versioned(Cell("a", "y"), "1"), Versioned(Cell("b", "x"), "1")]
    assert rows_of(table, wanted)["value"].to_pylist() == [2.0, 3.0, 4.0, 5.0]
    by_method = table.drop_columns("metric").slice(0, 4)
    assert rows_of(by_method, wanted[1:])["value"].to_pylist() == [2.0, 3.0]
