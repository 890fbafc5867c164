import re

from conftest import DEMO, ROOT

from scl_ray import config
from scl_ray.attribution import METHODS
from scl_ray.attribution.question import TARGETS
from scl_ray.datasets import Dataset
from scl_ray.metrics import METRICS

README = (ROOT / "README.md").read_text()
MEASURED = README[README.index("## What can be measured") : README.index("## Two protocols")]


def test_every_method_metric_and_target_is_named_and_no_other():
    named = set(re.findall(r"`([a-z_]+)`", MEASURED))
    assert named == METHODS.keys() | METRICS.keys() | TARGETS.keys()


def test_every_metric_stands_under_its_facet_with_its_direction():
    found = {}
    for facets, cell in re.findall(r"^\| ([a-z, ]+) \| (`.*) \|$", MEASURED, re.MULTILINE):
        for name, arrow in re.findall(r"`([a-z_]+)` ([↓↑])", cell):
            found[name] = {"↓": "lower", "↑": "higher"}[arrow]
            assert METRICS[name].facet in facets.split(", ")
    assert found == {name: metric.direction for name, metric in METRICS.items()}


def test_the_trials_and_the_data_that_are_named_are_the_demo_s(digits: Dataset):
    trials = {trial.identity(digits.fingerprint, digits.image_size) for trial in config.load(DEMO).trials()}
    assert set(re.findall(r'tags\.trial = "(.*?)"', README)) <= trials
    assert set(re.findall(r'dataset\.digest = "(.*?)"', README)) == {digits.fingerprint[:12]}
