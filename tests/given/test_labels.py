"""Which output stands for which class."""

import json
from pathlib import Path

import pytest

from scl_ray.config import InputError
from scl_ray.given.labels import outputs

CLASSES = ("cat", "dog", "wolf")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_a_file_as_many_outputs_as_classes_are_the_classes_in_order() -> None:
    assert outputs(CLASSES, 3, None) == ((0, 1, 2), CLASSES)
    with pytest.raises(InputError, match="4 outputs and the dataset 3 classes"):
        outputs(CLASSES, 4, None)


def test_files_of_every_form_say_the_same(tmp_path: Path) -> None:
    names = ["fish", "dog", "bird", "cat", "wolf"]
    files = [
        write(tmp_path / "a.txt", "\n".join(names) + "\n"),
        write(tmp_path / "a.json", json.dumps(names)),
        write(tmp_path / "a.yaml", "cat: 3\ndog: 1\nwolf: 4\nfish: 0\nbird: 2\n"),
        write(tmp_path / "b.json", json.dumps({name: number for number, name in enumerate(names)})),
    ]
    for path in files:
        assert outputs(CLASSES, 5, path) == ((3, 1, 4), tuple(names))


def test_classes_may_share_an_output_and_outputs_may_have_no_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "cat: 3\ndog: 1\nwolf: 1\n")
    assert outputs(CLASSES, 4, path) == ((3, 1, 1), ("output 0", "dog", "output 2", "cat"))
    # As ImageNet's two cranes: the first counts.
    twice = write(tmp_path / "a.txt", "cat\ndog\nwolf\ncat\n")
    assert outputs(CLASSES, 4, twice) == ((0, 1, 2), ("cat", "dog", "wolf", "output 3"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat: 0\ndog: 1\n", "lacks the class 'wolf'"),
        ("cat: 0\ndog: 1\nwolf: 4\n", "gives 4 for 'wolf'; the outputs are 0 to 3"),
        ("cat: 0\ndog: one\nwolf: 2\n", "gives 'one' for 'dog'"),
        ("cat: [", "cannot be read"),
        ("5", "neither a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        outputs(CLASSES, 4, write(tmp_path / "a.yaml", text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
