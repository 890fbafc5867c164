"""Memory that does not suffice for a shard: the program is told so, or the system kills it without a word.

Beside it a trial whose training is killed whenever it begins: what is started again has an end.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from scl_ray import datasets
from scl_ray.config import DatasetConfig

# An objective that is always killed, and a metric: 64 of the first shard's images at once take more memory than there
# is; with more than 20 images of the second shard it is killed, and with any of the third.
HUNGRY = """
import os, resource, signal
from pathlib import Path
import numpy as np
import torch

AN_IMAGE, FREE = 2**24, 600 * 2**20

def deadly(embeddings, labels):
    os.kill(os.getpid(), signal.SIGKILL)

def metric(model, images, targets, maps):
    known = torch.from_numpy(np.load(os.environ["KNOWN"]))
    pixels = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
    first = int((pixels @ known.T).argmax(1).min())
    with Path(os.environ["KNOWN"]).with_name(f"sizes-{first // 64}").open("a") as log:
        log.write(f"{len(images)} ")
    if first >= 128 or (first >= 64 and len(images) > 20):
        os.kill(os.getpid(), signal.SIGKILL)
    if first < 64:
        before = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + FREE, before[1]))
        try:
            np.empty(len(images) * AN_IMAGE, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return maps.flatten(1).mean(1)
"""


def test_a_shard_that_does_not_fit_is_tried_with_fewer_images_and_what_always_dies_fails_alone(
    start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    digits = datasets.load(DatasetConfig(name="digits", image_size=16))
    pixels = digits.test_images[digits.evaluation_order[:192]].reshape(192, -1).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    np.save(tmp_path / "known.npy", pixels / np.linalg.norm(pixels, axis=1, keepdims=True))
    settings = [
        "--set=grid.objective=[cross_entropy, 'hungry:deadly']",
        "--set=evaluation.metrics=[ssim_continuity, 'hungry:metric']",
        "--set=resources.evaluate.memory=1",  # GiB: 64 images at once, whatever else the machine does
    ]
    command = start(*settings, "--out", tmp_path / "runs", PYTHONPATH=str(tmp_path), KNOWN=str(tmp_path / "known.npy"))
    done = command.wait()
    assert done.code == 1, done.out + done.error

    def sizes(shard: int) -> list[int]:
        return [int(size) for size in (tmp_path / f"sizes-{shard}").read_text().split()]

    assert sizes(0) == [64, 32, 32, 32, 32]  # for one method it was too much, then both had halves
    assert sizes(1) == [64, *[16] * 8]
    assert sizes(2) == [64, 16, 4]
    assert "images 64-127: its process was killed or crashed (attempt 2 of 3)" in done.out
    assert "images 128-191: lost 3 times (its process was killed or crashed), the last time with 16 times" in done.out
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs/faults/trials").iterdir()]
    (deadly,) = [record for record in records if record["status"] != "trained"]
    assert (deadly["objective_label"], deadly["status"]) == ("hungry:deadly", "failed")
    assert deadly["error"] == "training was lost 3 times (its process was killed or crashed)"
    assert done.out.count("training: its process was killed or crashed (attempt") >= 2
    # The rest is there, and as it would be.
    (scores,) = (tmp_path / "runs/faults/scores").iterdir()
    found = pd.read_parquet(scores)
    assert len(found) == 128 * 2 * 2
    wanted = pd.read_parquet(undisturbed / "faults/scores" / scores.name)
    both = found.merge(wanted, on=["image", "method", "metric"], suffixes=("", "_wanted"))
    assert len(both) == 128 * 2
    assert ((both["value"] - both["value_wanted"]).abs() <= 1e-5).all()
