"""The scores of a view as an array, against the store's own rows."""

import numpy as np
import pytest
from report import known_sweep as known

from scl_ray import results
from scl_ray.report import view_scores


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    store = known.write(out, seeds=(0, 1), backbones=("resnet8", "resnet20"), protocols=("corrected", "published"),
                        failed=(("triplet margin=0.3", 1),))  # fmt: skip
    # A trial that has not predicted its last images leaves them out for all, though they are scored.
    trial = known.trial_id("supcon τ=0.5", "resnet20", 0)
    for part in store.parts("predictions", trial):
        if part.first == 2 * known.SHARD:
            store.fs.rm_file(part.path)
    return results.open_results(str(out), "demo")


def test_every_score_is_in_its_place(opened):
    views = view_scores.read(opened)
    assert {(view.backbone, view.protocol) for view in views} == {
        (backbone, protocol) for backbone in ("resnet8", "resnet20") for protocol in ("corrected", "published")
    }
    rows = results.load(str(opened.store.root).rsplit("/", 1)[0], "demo")
    for view in views:
        shard = known.IMAGES if view.backbone == "resnet8" else 2 * known.SHARD
        assert view.values.shape == (len(known.cells(("corrected",))), 7, shard)
        own = rows[(rows["backbone"] == view.backbone) & (rows["protocol"] == view.protocol)
                   & rows["image"].isin(view.images)]  # fmt: skip
        assert len(own) == view.values.size
        trial = own["trial"].astype(str).map({name: at for at, name in enumerate(view.trials["trial"])})
        image = np.searchsorted(view.images, own["image"])
        names = list(zip(view.measures["metric"], view.measures["method"], strict=True))
        plain = zip(own["metric"].map(results.plain), own["method"].map(results.plain), strict=True)
        measure = [names.index(name) for name in plain]
        np.testing.assert_array_equal(view.values[measure, trial, image], own["value"].to_numpy(np.float32))
        np.testing.assert_array_equal(view.correct[trial, image], own["correct"])


def test_common_images_and_rows_of_an_objective(opened):
    view = next(view for view in view_scores.read(opened) if view.backbone == "resnet8")
    counted = results.common_images(opened)
    assert view.common.sum() == counted.loc[counted["backbone"] == "resnet8", "common"].iloc[0]
    assert list(view.trials.loc[view.rows("supcon τ=0.07"), "seed"]) == [0, 1]
    assert len(view.rows("triplet margin=0.3")) == 1
