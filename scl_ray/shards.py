"""One shard of a trial's evaluation: a range of images explained and scored, and written to the store as whole parts.

torch is imported inside: a trial's coordinator imports the tasks that use this, and stays light without it.
"""

from typing import TYPE_CHECKING

from scl_ray.parts import Shard, rows_of
from scl_ray.parts import evaluation as hash_of
from scl_ray.plan import SAMPLE
from scl_ray.store import Store

if TYPE_CHECKING:
    from scl_ray.checkpoint import Checkpoint
    from scl_ray.datasets import Dataset
    from scl_ray.given.checkpoint import GivenClassifier


def evaluate(
    store: Store, trial_id: str, checkpoint: "Checkpoint | GivenClassifier", shard: Shard, dataset: "Dataset",
    device: str, memory: float | None = None, tasks: int = 1, smaller: int = 1,
) -> None:  # fmt: skip
    """Explain and score one shard and write its parts, the scores last. *memory* (GiB), *tasks*, *smaller*: how much it
    may take, how many share what is free, and how much smaller its batches are, as `evaluation.evaluate` says."""
    from scl_ray import evaluation

    # All that the maps serve, so that they stay when one of these is no longer wanted.
    kept = tuple(dict.fromkeys((*shard.maps, *shard.cells)))
    result = evaluation.evaluate(
        checkpoint, dataset, shard.first, shard.last,
        list(dict.fromkeys(v.cell for v in (*shard.cells, *shard.maps))),
        readouts=shard.readouts, device=device, memory=memory, tasks=tasks, smaller=smaller,
        sample=SAMPLE, save_maps=bool(shard.maps),
    )  # fmt: skip
    name, in_sample = hash_of(shard.cells), min(shard.last, SAMPLE - 1)
    if result.maps.num_rows:
        last = shard.last if shard.maps else in_sample
        store.write_part("samples", trial_id, hash_of(kept), shard.first, last, rows_of(result.maps, kept), kept)
    if shard.cells and result.curves.num_rows:
        curves = rows_of(result.curves, shard.cells)
        store.write_part("curves", trial_id, name, shard.first, in_sample, curves, shard.cells)
    for readout, table in result.predictions.items():
        store.write_part("predictions", trial_id, readout, shard.first, shard.last, table)
    if shard.cells:
        scores = rows_of(result.scores, shard.cells)
        store.write_part("scores", trial_id, name, shard.first, shard.last, scores, shard.cells)
