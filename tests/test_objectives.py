"""Objectives against their formulas, written out by hand in float64: loss and gradient."""

import inspect
import itertools
import math
import sys

import pytest
import pytorch_metric_learning.losses as library
import torch
from pydantic import TypeAdapter
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch.nn import functional

from scl_ray import config, objectives
from scl_ray.config import InputError
from scl_ray.objectives import OBJECTIVES

LABELS = torch.tensor([0, 2, 1, 0, 1, 3, 2, 0])  # 3 has one image only


def outputs(count: int, size: int = 6, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, size, generator=generator, dtype=torch.float64)


def rows(tensor: torch.Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in tensor]


def check(objective, formula, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """The loss equals *formula*, its gradient the formula's central differences."""
    embeddings = embeddings.clone().requires_grad_()
    loss = objective.loss(embeddings, labels)
    loss.backward()
    numbers, truth = rows(embeddings.detach()), labels.tolist()
    assert loss.item() == pytest.approx(formula(numbers, truth), abs=1e-10)
    step = 1e-6
    for i, j in itertools.product(range(len(numbers)), range(len(numbers[0]))):
        kept = numbers[i][j]
        numbers[i][j] = kept + step
        above = formula(numbers, truth)
        numbers[i][j] = kept - step
        below = formula(numbers, truth)
        numbers[i][j] = kept
        assert embeddings.grad[i, j].item() == pytest.approx((above - below) / (2 * step), abs=1e-6)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def l_out(z: list[list[float]], labels: list[int], temperature: float) -> float:
    """Khosla et al. 2020, equation 2, divided by the number of anchors."""
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        denominator = sum(math.exp(cosine(z[i], z[a]) / temperature) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        terms = [math.log(math.exp(cosine(z[i], z[p]) / temperature) / denominator) for p in positives]
        total += -sum(terms) / len(terms)
    return total / len(z)


TEMPERATURES = [0.05, 0.07, 0.5, 1.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_supcon(temperature):
    labels = LABELS[:5].repeat(2)  # 2 has one image only
    check(OBJECTIVES["supcon"](temperature), lambda z, y: l_out(z, y, temperature), outputs(10), labels)


def reference_supcon(z: torch.Tensor, labels: torch.Tensor, temperature: float, base_temperature: float):
    """Khosla et al.'s own arrangement: masks of 0 and 1, the largest score taken off, a factor before the mean."""
    z = z / z.norm(dim=1, keepdim=True)
    scores = z @ z.T / temperature
    scores = scores - scores.max(dim=1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(z), dtype=z.dtype)
    positives = (labels[:, None] == labels[None, :]).to(z.dtype) * others
    log_probabilities = scores - (scores.exp() * others).sum(dim=1, keepdim=True).log()
    return -temperature / base_temperature * ((positives * log_probabilities).sum(1) / positives.sum(1)).mean()


def same_loss_and_gradient(one, other, z: torch.Tensor) -> None:
    results = []
    for formula in (one, other):
        leaf = z.clone().requires_grad_()
        loss = formula(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    # Two orders of adding up the same float64 terms.
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-11)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("labels", [torch.arange(32) % 5, torch.arange(32), torch.zeros(32, dtype=torch.long)])
def test_supcon_is_the_reference_implementations(temperature, labels):
    loss, both = OBJECTIVES["supcon"](temperature).loss, labels.repeat(2)
    z = outputs(64, size=objectives.PROJECTION_SIZE)
    same_loss_and_gradient(
        lambda z: loss(z, both), lambda z: reference_supcon(z, both, temperature, base_temperature=temperature), z
    )
    # Their base temperature is 0.07 by default, a constant factor.
    theirs = reference_supcon(z, both, temperature, base_temperature=0.07)
    assert loss(z, both).item() * temperature / 0.07 == pytest.approx(theirs.item(), rel=1e-11)


def test_supcon_and_simclr_are_the_librarys():
    z, labels = outputs(64, size=objectives.PROJECTION_SIZE), (torch.arange(32) % 5).repeat(2)
    theirs = library.SupConLoss(0.07, reducer=MeanReducer())
    same_loss_and_gradient(lambda z: OBJECTIVES["supcon"](0.07).loss(z, labels), lambda z: theirs(z, labels), z)
    pairs = library.SelfSupervisedLoss(library.NTXentLoss(0.5))
    same_loss_and_gradient(lambda z: OBJECTIVES["simclr"](0.5).loss(z, labels), lambda z: pairs(z[:32], z[32:]), z)


def test_supcon_of_an_anchor_without_a_positive_is_finite():
    z = outputs(5).requires_grad_()
    loss = OBJECTIVES["supcon"](0.07).loss(z, torch.tensor([0, 0, 1, 1, 2]))
    loss.backward()
    assert loss.item() > 0
    assert z.grad.isfinite().all()


def test_supcon_is_the_mean_over_all_anchors_even_those_whose_loss_is_nothing():
    # Class 0 lies in one direction and class 1 in the other: at this temperature its two anchors cost nothing at all.
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [-1.0, 0.3]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1])
    losses = OBJECTIVES["supcon"](0.005).loss(z, labels)
    assert losses.item() == pytest.approx(l_out(rows(z), labels.tolist(), 0.005), abs=1e-10)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_simclr(temperature):
    def nt_xent(z, labels):
        """Chen et al. 2020, equation 1, over all 2N anchors; labels are not looked at."""
        half, total = len(z) // 2, 0.0
        for i in range(len(z)):
            scores = {k: math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i}
            total -= math.log(scores[(i + half) % len(z)] / sum(scores.values()))
        return total / len(z)

    check(OBJECTIVES["simclr"](temperature), nt_xent, outputs(10), torch.zeros(10, dtype=torch.long))


def triplet_formula(margin: float, mining: str):
    def formula(z: list[list[float]], labels: list[int]) -> float:
        losses = []
        for a in range(len(z)):
            distance = [math.dist(z[a], other) for other in z]
            positives = [p for p in range(len(z)) if labels[p] == labels[a] and p != a]
            negatives = [n for n in range(len(z)) if labels[n] != labels[a]]
            if not negatives:
                continue
            if mining == "hard" and positives:
                losses.append(max(distance[p] for p in positives) - min(distance[n] for n in negatives) + margin)
            elif mining == "semi_hard":
                for p in positives:
                    farther = [distance[n] for n in negatives if distance[p] < distance[n] < distance[p] + margin]
                    nearest = min(farther) if farther else min(distance[n] for n in negatives)
                    losses.append(distance[p] - nearest + margin)
        active = [loss for loss in losses if loss > 0]
        return sum(active) / len(active) if active else 0.0

    return formula


@pytest.mark.parametrize("mining", ["semi_hard", "hard"])
@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_triplet(mining, margin):
    check(OBJECTIVES["triplet"](margin, mining), triplet_formula(margin, mining), outputs(8), LABELS)


def by_hand(z: torch.Tensor, labels: torch.Tensor, margin: float, mining: str) -> tuple[float, torch.Tensor]:
    """The triplet loss and its gradient: unit vectors from and to each violating triplet's images, averaged."""
    distances = [[float((a - b).norm()) for b in z] for a in z]
    total, active, gradient = 0.0, 0, torch.zeros_like(z)
    for anchor, near in enumerate(distances):
        positives = [p for p in range(len(z)) if labels[p] == labels[anchor] and p != anchor]
        negatives = sorted((n for n in range(len(z)) if labels[n] != labels[anchor]), key=near.__getitem__)
        if mining == "hard":
            positives = [max(positives, key=near.__getitem__)] if positives else []
        for positive in positives:
            farther = [n for n in negatives if near[positive] < near[n] < near[positive] + margin]
            negative = farther[0] if farther and mining == "semi_hard" else negatives[0]
            violation = near[positive] - near[negative] + margin
            if violation > 0:
                total, active = total + violation, active + 1
                for other, sign in ((positive, 1), (negative, -1)):
                    unit = sign * (z[anchor] - z[other]) / near[other]
                    gradient[anchor] += unit
                    gradient[other] -= unit
    return total / active, gradient / active


@pytest.mark.parametrize("mining", ["semi_hard", "hard"])
@pytest.mark.parametrize("scale", [0.1, 3.0])  # nearly all triplets violate the margin, or few
def test_triplet_on_a_larger_batch(mining, scale):
    z, labels = outputs(48, scale=scale), torch.arange(48) % 7
    labels[0] = 7  # the only one of its class
    leaf = z.clone().requires_grad_()
    loss = OBJECTIVES["triplet"](0.3, mining).loss(leaf, labels)
    loss.backward()
    expected, gradient = by_hand(z, labels, 0.3, mining)
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(leaf.grad, gradient, rtol=0, atol=1e-10)
    assert loss.item() == pytest.approx(triplet_formula(0.3, mining)(rows(z), labels.tolist()), abs=1e-10)


@pytest.mark.parametrize("mining", ["semi_hard", "hard"])
def test_triplet_of_features_far_from_the_origin_is_as_exact_as_near_it(mining):
    """As they are after a ReLU: one large mean, and classes that lie close together around it."""
    labels = torch.arange(64) % 7
    z = (outputs(64, size=512, scale=0.005) + 1.3).float()  # |z| is 29, distances are 0.16
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = z.to(dtype).requires_grad_()
        loss = OBJECTIVES["triplet"](0.3, mining).loss(leaf, labels)
        loss.backward()
        results.append((loss.item(), leaf.grad.double()))
    # Float32 rounds at 6e-8, and distances are sums of squares of 512 numbers.
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert (results[1][1] - results[0][1]).norm() < 1e-5 * results[0][1].norm()


def test_semi_hard_triplets_are_among_the_librarys():
    z, labels, margin = outputs(60, scale=0.3), torch.arange(60) % 7, 0.3
    miner = TripletMarginMiner(margin, "semihard", distance=LpDistance(normalize_embeddings=False))
    theirs = set(zip(*(t.tolist() for t in miner(z, labels)), strict=True))
    distances, same = torch.cdist(z, z), labels[:, None] == labels
    to_negatives = distances.masked_fill(same, math.inf)
    negatives = objectives.semi_hard(distances, to_negatives, margin)
    pairs = {(a, p) for a, p, _ in theirs}
    assert pairs
    assert all((a, p, int(negatives[a, p])) in theirs for a, p in pairs)
    # Where the library finds none, it is the nearest of all.
    rest = {(a, p) for a, p in same.nonzero().tolist() if a != p} - pairs
    assert rest
    assert all(negatives[a, p] == to_negatives[a].argmin() for a, p in rest)


@pytest.mark.parametrize("entry", [*OBJECTIVES, {"name": "triplet", "mining": "hard"}])
def test_no_step_waits_for_a_device(entry):
    # Nothing can be read from the meta device: what asks for a value, or for how many there are, raises there.
    objective = built({"name": entry} if isinstance(entry, str) else entry)
    z = torch.empty(20, 16, device="meta", requires_grad=True)
    objective.loss(z, torch.empty(20, dtype=torch.long, device="meta")).backward()
    assert z.grad.shape == z.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("entry", [*OBJECTIVES, {"name": "triplet", "mining": "hard"}])
def test_no_step_waits_for_a_gpu(entry):
    objective = built({"name": entry} if isinstance(entry, str) else entry)
    z = torch.randn(20, 16, device="cuda", requires_grad=True)
    labels = (torch.arange(10, device="cuda") % 3).repeat(2)
    objective.loss(z, labels).backward()  # the libraries below are loaded now
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective.loss(z, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mining", ["semi_hard", "hard"])
@pytest.mark.parametrize(
    ("z", "labels"),
    [
        (outputs(8), torch.zeros(8, dtype=torch.long)),  # no negative
        (outputs(8), torch.arange(8)),  # no positive
        (torch.zeros(8, 6, dtype=torch.float64), LABELS),  # all at one point
        (torch.cat([outputs(4), outputs(4) + 100]), torch.arange(8) // 4),  # no violation
    ],
)
def test_triplet_of_a_degenerate_batch_is_finite(mining, z, labels):
    z = z.clone().requires_grad_()
    loss = OBJECTIVES["triplet"](0.3, mining).loss(z, labels)
    loss.backward()
    assert loss.item() == pytest.approx(triplet_formula(0.3, mining)(rows(z.detach()), labels.tolist()), abs=1e-9)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    def formula(z, labels):
        total = 0.0
        for row, label in zip(z, labels, strict=True):
            log_sum = math.log(sum(math.exp(value) for value in row))
            logs = [value - log_sum for value in row]
            total -= (1 - smoothing) * logs[label] + smoothing * sum(logs) / len(row)
        return total / len(z)

    check(OBJECTIVES["cross_entropy"](smoothing), formula, outputs(8), LABELS)


def test_what_each_acts_on():
    facts = {name: (make().acts_on, make().views) for name, make in OBJECTIVES.items()}
    assert facts == {
        "cross_entropy": ("logits", 1),
        "supcon": ("projection", 2),
        "simclr": ("projection", 2),
        "triplet": ("features", 1),
    }


def built(entry: dict, classes: int = 10) -> objectives.Objective:
    return objectives.build(TypeAdapter(config.Objective).validate_python(entry), classes)


def test_the_configuration_s_parameters_reach_the_loss():
    z, labels = outputs(8), LABELS
    for entry in ({"name": "supcon", "temperature": 0.3}, {"name": "triplet", "margin": 1.5, "mining": "hard"}):
        parameters = {key: value for key, value in entry.items() if key != "name"}
        assert built(entry).loss(z, labels) == OBJECTIVES[entry["name"]](**parameters).loss(z, labels)


REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}
# Two base classes, and SmoothAP, which wants equally many images of each class in a batch.
REFUSED = {"BaseMetricLossFunction", "GenericPairLoss", "SmoothAPLoss"}
LOSSES = {
    name
    for name, kind in vars(library).items()
    if inspect.isclass(kind) and issubclass(kind, library.BaseMetricLossFunction)
}


@pytest.mark.parametrize("name", sorted(LOSSES - REFUSED))
def test_any_loss_of_the_library_by_name(name):
    objective = built({"name": name, "parameters": REQUIRED.get(name, {})})
    z = torch.randn(64, objectives.PROJECTION_SIZE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = objective.loss(z, torch.arange(64) % 10)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.abs().sum() > 0


def test_sizes_the_library_wants_are_filled_in():
    weights = built({"name": "ArcFaceLoss", "parameters": {"margin": 20}}, classes=7).weights
    assert {tuple(p.shape) for p in weights.parameters()} == {(objectives.PROJECTION_SIZE, 7)}
    assert math.degrees(weights.margin) == pytest.approx(20)


def test_vicreg_compares_the_two_views():
    objective = built({"name": "VICRegLoss"})
    z = torch.randn(64, objectives.PROJECTION_SIZE, generator=torch.Generator().manual_seed(0))
    assert objective.views == 2
    assert objective.loss(z, torch.arange(64)) == library.VICRegLoss()(z[:32], ref_emb=z[32:])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("NoSuchLoss", {}),
        ("supconn", {}),
        ("torch", {}),
        ("CircleLoss", {"no_such": 1}),
        ("CircleLoss", {"m": "much"}),
        ("RankedListLoss", {}),
        *((name, {}) for name in sorted(REFUSED)),
    ],
)
def test_a_loss_that_cannot_be_trained_is_refused_in_one_sentence(name, parameters):
    state = torch.get_rng_state()
    with pytest.raises(InputError) as error:
        objectives.check_metric_learning(name, parameters)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_objective.py").write_text(
        "def spread(z, labels, power): return (z ** power).mean() + labels.sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    objective = built({"name": "own_objective:spread", "parameters": {"power": 3}, "views": 2})
    sys.modules.pop("own_objective")
    z = outputs(8)
    assert objective.loss(z, LABELS) == (z**3).mean() + LABELS.sum()
    assert (objective.acts_on, objective.views) == ("projection", 2)


def test_heads():
    features = torch.randn(5, 16)
    assert objectives.head("logits", 16, 10)(features).shape == (5, 10)
    assert torch.equal(objectives.head("features", 16, 10)(features), features)
    projection = objectives.head("projection", 16, 10)
    first, _, last = projection
    expected = functional.relu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    assert torch.allclose(projection(features), expected, atol=1e-6)
    assert last.weight.shape == (128, 16)
