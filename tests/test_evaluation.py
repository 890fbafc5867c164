import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from quick import QUICK_METHODS, QUICK_METRICS

from scl_ray import attribution, metrics
from scl_ray.config import Cell
from scl_ray.evaluation import cell_version, cells, evaluate, forward_passes

METHODS = ["grad_cam", "eigen_cam", "saliency", "integrated_gradients[steps=4]"]
METRICS = [
    "pixel_flipping_auc", "prediction_flip_auc", "ssim_continuity", "ssim_continuity[noise=0.3]", "ssim_contrastivity",
    "complexity", "sparseness", "pointing_game", "attribution_localisation",
]  # fmt: skip
RANKED = ("pixel_flipping_auc", "prediction_flip_auc", "pointing_game")


def published(specs):
    return [f"{spec[:-1]},protocol=published]" if "[" in spec else f"{spec}[protocol=published]" for spec in specs]


@pytest.fixture(scope="module")
def masked(digits):
    """The digits with masks, their strokes; one image has an empty mask."""
    masks = digits.test_images[:, 0] > 100
    masks[digits.evaluation_order[5]] = False
    return dataclasses.replace(digits, test_masks=masks)


@pytest.fixture(scope="module")
def every_cell():
    return cells(METHODS + published(METHODS[:2]), METRICS + published(METRICS), has_masks=True)[0]


@pytest.fixture(scope="module")
def result(trained, masked, every_cell):
    return evaluate(trained, masked, 0, 39, every_cell, readouts=["own_layer", "own_layer_published"], sample=16)


def values_of(table):
    """{(method, metric): {image: value}}"""
    found = {}
    for row in table.to_pylist():
        found.setdefault((row["method"], row["metric"]), {})[row["image"]] = row["value"]
    return found


def test_the_tables(result, masked, every_cell):
    schema = {field.name: str(field.type) for field in result.scores.schema}
    dictionary = "dictionary<values=string, indices=int32, ordered=0>"
    assert schema == {"image": "int32", "method": dictionary, "metric": dictionary, "value": "float"}
    found = values_of(result.scores)
    assert set(found) == set(every_cell)
    images = set(masked.evaluation_order[:40].tolist())
    assert all(set(values) == images for values in found.values())
    assert not np.isnan(result.scores["value"].drop_null().to_numpy()).any()
    empty = masked.evaluation_order[5]
    assert all(values[empty] is None for (_, metric), values in found.items() if metric.startswith("pointing_game"))
    assert all(sum(value is not None for value in values.values()) >= 25 for values in found.values())


def test_the_values_are_those_of_explain_and_score(result, trained, masked):
    network = trained.explained("corrected")
    indices = masked.evaluation_order[:40]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trained.mean, trained.std))
    images = (torch.tensor(masked.test_images[indices]).float() / 255 - mean) / std
    targets = network(images).argmax(1)
    found = values_of(result.scores)
    for method in METHODS:
        maps = attribution.explain(network, images, targets, method)
        for metric in ("pixel_flipping_auc", "complexity"):
            wanted = metrics.score(metric, network, images, targets, maps)
            got = torch.tensor([found[method, metric][image] for image in indices.tolist()])
            assert ((wanted - got).abs() < 1e-5).float().mean() >= 0.97


def test_predictions_are_those_of_the_read_out(result, trained, masked):
    indices = masked.evaluation_order[:40]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trained.mean, trained.std))
    images = (torch.tensor(masked.test_images[indices]).float() / 255 - mean) / std
    for protocol in ("corrected", "published"):
        table = result.predictions[trained.readout_name(protocol)]
        assert table.schema.types == [pa.int32(), pa.int32(), pa.int32(), pa.float32()]
        with torch.no_grad():
            confidence, predicted = trained.explained(protocol)(images).softmax(1).max(1)
        assert table["image"].to_pylist() == indices.tolist()
        assert table["label"].to_pylist() == masked.test_labels[indices].tolist()
        assert table["prediction"].to_pylist() == predicted.tolist()
        assert np.abs(table["confidence"].to_numpy() - confidence.numpy()).max() < 1e-5


def test_curves_of_the_sample(result, masked):
    found = result.curves.to_pandas()
    assert set(found.image) == set(masked.evaluation_order[:16].tolist())
    assert {metric.partition("[")[0] for metric in found.metric} == {"pixel_flipping_auc", "prediction_flip_auc"}
    one = found[(found.method == "saliency") & (found.metric == "pixel_flipping_auc")]
    curve = one[one.image == one.image.iloc[0]].sort_values("step")
    assert curve.step.tolist() == list(range(32))
    auc = values_of(result.scores)["saliency", "pixel_flipping_auc"][curve.image.iloc[0]]
    assert abs(np.trapezoid(curve.value) / 31 - auc) < 1e-5


def test_maps_of_the_sample_or_of_all(result, trained, masked):
    assert set(result.maps["image"].to_pylist()) == set(masked.evaluation_order[:16].tolist())
    assert result.maps.num_rows == 16 * 6
    assert result.maps.schema.field("map").type == pa.list_(pa.float16())
    row = result.maps.slice(0, 1).to_pylist()[0]
    assert (row["height"], row["width"], len(row["map"])) == (32, 32, 1024)
    chosen = [Cell("grad_cam", "complexity")]
    everything = evaluate(trained, masked, 10, 29, chosen, sample=16, save_maps=True)
    assert everything.maps["image"].to_pylist() == masked.evaluation_order[10:30].tolist()
    beyond = evaluate(trained, masked, 16, 20, [Cell("grad_cam", "pixel_flipping_auc")], sample=16)
    assert (beyond.maps.num_rows, beyond.curves.num_rows, beyond.scores.num_rows) == (0, 0, 5)
    first = result.maps.filter(pa.compute.equal(result.maps["method"].cast(pa.string()), "grad_cam")).slice(10, 1)
    assert np.allclose(first["map"].to_pylist(), everything.maps["map"].to_pylist()[0], atol=2e-3)


def test_what_float16_cannot_hold_is_null(tmp_path, monkeypatch, trained, masked):
    (tmp_path / "huge_method.py").write_text("def huge(model, images, targets):\n    return 1e5 + images.mean(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = evaluate(trained, masked, 0, 1, [Cell("huge_method:huge", "complexity")])
    assert found.maps["map"].to_pylist()[0][:3] == [None] * 3
    assert found.scores["value"].null_count == 0


@pytest.mark.parametrize("cuts", [[(0, 6), (7, 39)], [(20, 39), (0, 19)]])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_values_depend_on_neither_shards_nor_batches(result, trained, masked, every_cell, cuts, batch_size):
    parts = [evaluate(trained, masked, *cut, every_cell, batch_size=batch_size) for cut in cuts]
    pieces = values_of(pa.concat_tables(part.scores for part in parts))
    for cell, whole in values_of(result.scores).items():
        assert {i for i, v in whole.items() if v is None} == {i for i, v in pieces[cell].items() if v is None}
        differences = [abs(v - pieces[cell][i]) for i, v in whole.items() if v is not None]
        if cell[1].partition("[")[0] in RANKED:
            # The published order of ties is the sort's, and rounding errors turn it.
            least = 0.9 if "published" in cell[1] else 0.97
            assert np.mean(np.array(differences) <= 1e-5) >= least, cell
        else:
            assert max(differences) <= 1e-5, cell


def test_scoring_fewer_cells_gives_the_same_values(result, trained, masked):
    chosen = [Cell("eigen_cam", "ssim_continuity[noise=0.3]"), Cell("saliency", "ssim_contrastivity")]
    found = values_of(evaluate(trained, masked, 0, 39, chosen).scores)
    whole = values_of(result.scores)
    for cell in chosen:
        defined = [(found[cell][i], value) for i, value in whole[cell].items() if value is not None]
        assert max(abs(one - other) for one, other in defined) < 1e-5


def test_protocols_explain_their_own_network(result):
    found = values_of(result.scores)
    # Calibration stretches the corrected network's scores, and the published noise is clamped above the mean.
    for metric in ("pixel_flipping_auc", "ssim_continuity"):
        corrected = found["grad_cam", metric]
        as_published = found["grad_cam[protocol=published]", f"{metric}[protocol=published]"]
        assert any(abs(corrected[i] - v) > 1e-3 for i, v in as_published.items() if v is not None)


def test_predictions_alone(trained, masked):
    found = evaluate(trained, masked, 3, 5, [], readouts=["own_layer"])
    assert found.predictions["own_layer"].num_rows == 3
    assert (found.scores.num_rows, found.curves.num_rows, found.maps.num_rows) == (0, 0, 0)
    assert found.scores.schema.names == ["image", "method", "metric", "value"]


def test_wrong_ranks_and_read_outs(trained, masked):
    with pytest.raises(ValueError, match="ranks 350-360: the dataset has ranks 0-359"):
        evaluate(trained, masked, 350, 360, [])
    with pytest.raises(ValueError, match="'linear_probe': the checkpoint has own_layer and own_layer_published"):
        evaluate(trained, masked, 0, 1, [], readouts=["linear_probe"])


def test_cells_and_what_makes_no_sense():
    valid, refused = cells(["grad_cam", "eigen_cam"], ["complexity", "ssim_contrastivity", "pointing_game"], False)
    assert valid == [("grad_cam", "complexity"), ("grad_cam", "ssim_contrastivity"), ("eigen_cam", "complexity")]
    assert [cell for cell, _ in refused] == [
        ("grad_cam", "pointing_game"), ("eigen_cam", "ssim_contrastivity"), ("eigen_cam", "pointing_game")
    ]  # fmt: skip
    assert refused[1][1] == "eigen_cam explains no class, so there is none to contrast"
    assert "needs masks" in refused[0][1]
    assert len(cells(["grad_cam"], ["pointing_game"], True)[0]) == 1


def test_a_published_method_goes_with_published_metrics_only():
    methods, names = ["grad_cam", *published(["grad_cam"])], ["complexity", *published(["complexity"])]
    valid, refused = cells(methods, names, True)
    assert valid == list(zip(methods, names, strict=True))
    assert refused == []


def test_a_bad_spec_is_refused_before_any_work():
    with pytest.raises(ValueError, match="there is no metric 'complexty'"):
        cells(["grad_cam"], ["complexty"], True)
    with pytest.raises(ValueError, match="noise must be a number above 0"):
        cells(["grad_cam"], ["ssim_continuity[noise=0]"], True)


def test_a_cell_has_the_versions_of_its_parts(tmp_path, monkeypatch):
    assert cell_version(Cell("grad_cam", "complexity")) == "1-1"
    source = tmp_path / "versioned_metric.py"
    source.write_text("def total(model, images, targets, maps):\n    return maps.sum((1, 2))\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = cell_version(Cell("grad_cam", "versioned_metric:total"))
    source.write_text("def total(model, images, targets, maps):\n    return 2 * maps.sum((1, 2))\n")
    assert cell_version(Cell("grad_cam", "versioned_metric:total")) != before


def test_forward_passes_are_those_that_are_run(trained, masked):
    chosen = cells(["grad_cam", "eigen_cam"], METRICS, has_masks=True)[0]
    seen = []
    with trained.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        evaluate(trained, masked, 0, 19, chosen)
    assert forward_passes(chosen, 32) == 1 + 2 * 32 + 2
    assert sum(seen) == 20 * forward_passes(chosen, 32) + 1  # one image, to see how many fit into memory
    gradients = cells(["saliency", "integrated_gradients[steps=10]"], ["ssim_continuity"], False)[0]
    assert forward_passes(gradients, 32) == 1 + (2 + 30) + (3 + 30)
    assert forward_passes([], 32) == 0


def test_every_method_goes_with_every_metric(trained, masked):
    # Randomising a network layer by layer explains again more often than all the rest; tests/metrics does that.
    metrics = [metric for metric in QUICK_METRICS if not metric.startswith(("mprt", "smooth_mprt"))]
    metrics += ["quantus:EffectiveComplexity", "pixel_flipping_auc[precision=bfloat16]"]
    methods = [*QUICK_METHODS, "grad_cam[target=prototype]", "saliency[target=label_free]", "saliency[target=corpus]"]
    chosen = cells(methods, metrics, has_masks=True)[0]
    scores = evaluate(trained, masked, 0, 1, chosen).scores.to_pandas()
    assert len(scores) == 2 * len(chosen) > 2000
    is_null = scores["value"].isna().groupby([scores["method"], scores["metric"]], observed=True).all()
    null = {pair for pair in is_null.index if is_null[pair]}
    # A constant map ranks nothing, and no noise is like another.
    constant = {pair for pair in is_null.index if pair[0] == "constant"}
    assert null == constant | {("random", "sufficiency")}
