"""Specs: one way to write a name with parameters."""

import pytest

from scl_ray import specs


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("grad_cam", "grad_cam", {}),
        ("grad_cam[target=prototype]", "grad_cam", {"target": "prototype"}),
        ("ssim_continuity[noise=0.1]", "ssim_continuity", {"noise": 0.1}),
        ("m[b=true,a=3,c=null]", "m", {"a": 3, "b": True, "c": None}),
        ("mine.methods:blur[sigma=2]", "mine.methods:blur", {"sigma": 2}),
    ],
)
def test_parse(text: str, name: str, parameters: dict) -> None:
    assert specs.parse(text) == (name, parameters)


@pytest.mark.parametrize("text", ["", "a[", "a]b", "a[b]", "a[=1]", "a b"])
def test_parse_refuses_what_is_no_spec(text: str) -> None:
    with pytest.raises(ValueError, match="spec|parameter=value"):
        specs.parse(text)


def test_canonical_drops_defaults_sorts_and_shortens() -> None:
    defaults = {"noise": 0.02, "protocol": "corrected", "steps": 50, "flag": True}
    assert specs.canonical("m", {"noise": 0.02, "protocol": "corrected"}, defaults) == "m"
    assert specs.canonical("m", {"steps": 16, "noise": 0.10}, defaults) == "m[noise=0.1,steps=16]"
    assert specs.canonical("m", {"noise": 1.0}, defaults) == "m[noise=1]"
    # 1 is not true, though Python says they are equal.
    assert specs.canonical("m", {"flag": 1}, defaults) == "m[flag=1]"


@pytest.mark.parametrize("value", ["prototype", "true", "1", "", None, True, 3, 0.25, -1e-07])
def test_parse_undoes_canonical(value: object) -> None:
    assert specs.parse(specs.canonical("m", {"p": value}, {"p": "another"})) == ("m", {"p": value})


@pytest.mark.parametrize("value", ["a,b", "x=y", "[1]", "a b"])
def test_canonical_refuses_what_could_not_be_parsed(value: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a spec"):
        specs.canonical("m", {"p": value}, {})


def test_expand_takes_lists_as_axes() -> None:
    points = list(specs.expand({"temperature": [0.07, 0.5], "margin": 1}))
    assert points == [{"temperature": 0.07, "margin": 1}, {"temperature": 0.5, "margin": 1}]
    with pytest.raises(ValueError, match="temperature: is an empty list"):
        list(specs.expand({"temperature": []}))


def test_tracking_name_has_no_brackets() -> None:
    assert specs.tracking_name("a[b=1,c=x]") == "a:b:1:c:x"
    assert specs.tracking_name("grad_cam") == "grad_cam"
