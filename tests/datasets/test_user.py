"""Datasets of the user's own."""

from hashlib import md5

import numpy as np
import pytest
from refusal import refused

from scl_ray import datasets
from scl_ray.config import DatasetConfig

USER = """
import numpy as np

def arrays(root=None):
    labels = np.arange(40) % 4
    images = np.repeat(labels[:, None, None, None], 12 * 12, axis=1).reshape(40, 1, 12, 12).astype(np.uint8)
    made = dict(train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    {change}
    return made
"""


class TestUsersOwn:
    def written(self, tmp_path, monkeypatch, change="pass") -> DatasetConfig:
        name = f"own_dataset_{md5(str(tmp_path).encode()).hexdigest()[:8]}"
        (tmp_path / f"{name}.py").write_text(USER.replace("{change}", change))
        monkeypatch.syspath_prepend(tmp_path)
        return DatasetConfig(name=f"{name}:arrays")

    def test_arrays_become_a_dataset(self, tmp_path, monkeypatch):
        dataset = datasets.load(self.written(tmp_path, monkeypatch))
        assert dataset.test_images.shape == (8, 3, 12, 12)
        assert dataset.classes == ("0", "1", "2", "3")
        assert np.array_equal(dataset.test_images[:, 2, 5, 5], dataset.test_labels)

    def test_root_is_passed_on(self, tmp_path, monkeypatch):
        config = self.written(tmp_path, monkeypatch, "made['classes'] = list(root)")
        assert datasets.load(config.model_copy(update={"root": "wxyz"})).classes == ("w", "x", "y", "z")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("made = [1]", "must return a mapping"),
            ("del made['test_labels']", "must return a mapping"),
            ("made['extra'] = 1", "must return a mapping"),
            ("made['train_images'] = images / 255", "train_images is float64"),
            ("made['test_images'] = images[:0]; made['test_labels'] = labels[:0]", "zero images"),
            ("made['test_labels'] = labels[:7]", "test_labels"),
            ("made['train_labels'] = labels - 1", "train_labels"),
            ("made['classes'] = ['a']", "names 1 classes"),
            ("made['classes'] = list('abcde')", "no training image of the class 'e'"),
            ("made['test_masks'] = images[:7, 0]", "test_masks"),
        ],
    )
    def test_anything_else_is_refused(self, tmp_path, monkeypatch, change, said):
        assert said in refused(self.written(tmp_path, monkeypatch, change))
