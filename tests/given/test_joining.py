"""Networks side by side: what tells them apart, and what each is called."""

import pytest

from scl_ray.config import InputError
from scl_ray.given.config import Network
from scl_ray.given.joining import several, together


def network(label: str = "a", weights: str = "1", **changed: object) -> Network:
    about = {"dataset": "digits", "fingerprint": "f", "validation": 0.1, "image_size": 16, "model": "m:f",
             "arguments": {}, "code": "c", "outputs": (0, 1), "mean": (0.0,), "std": (1.0,)}  # fmt: skip
    return Network.model_validate({**about, "label": label, "weights": weights, **changed})


def of(*networks: Network) -> dict[str, Network]:
    return {one.identity: one for one in networks}


def test_identity_is_of_all_that_decides_a_score_and_of_no_name() -> None:
    same = [network(), network("b"), network(seed=3), network(dataset="other name")]
    assert len({one.identity for one in same}) == 1
    others = [
        network(weights="2"), network(model="m:g"), network(code="d"), network(layer="layer4"), network(mean=(0.1,)),
        network(std=(2.0,)), network(outputs=(1, 0)), network(fingerprint="g"), network(image_size=17),
        network(validation=0.2), network(arguments={"num_classes": 2}),
    ]  # fmt: skip
    assert len({one.identity for one in [network(), *others]}) == 1 + len(others)


def test_networks_of_one_label_count_as_seeds() -> None:
    known = together({}, of(network("a", "1"), network("a", "2")), is_labelled=True)
    joined = together(known, of(network("a", "3"), network("b", "4")), is_labelled=True)
    assert [(one.label, one.seed) for one in joined.values()] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert list(joined)[:2] == list(known)
    assert several(joined.values()) == ["a"]


def test_a_label_is_taken_or_changed_by_no_accident() -> None:
    known = together({}, of(network("a", "1")), is_labelled=False)
    assert together(known, of(network("other file", "1")), is_labelled=False) == known
    with pytest.raises(InputError, match="there as 'a' already"):
        together(known, of(network("b", "1")), is_labelled=True)
    with pytest.raises(InputError, match="there as 'a' already"):
        together(known, of(network("a", "2")), is_labelled=False)
