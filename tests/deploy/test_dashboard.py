"""The Grafana dashboard asks for what the code measures, all of it and nothing else."""

import json
import re

from conftest import ROOT
from jsonschema import Draft202012Validator

from scl_ray.cluster.metrics import METRICS

DASHBOARD = json.loads((ROOT / "k8s/grafana.json").read_text())

# What Grafana's importer needs to find.
SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    "properties": {
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "type", "title", "gridPos", "datasource", "targets"],
                "properties": {
                    "gridPos": {"type": "object", "required": ["x", "y", "w", "h"]},
                    "targets": {"type": "array", "minItems": 1, "items": {"required": ["refId", "expr", "datasource"]}},
                },
            },
        },
    },
}


def test_it_is_a_dashboard_whose_panels_do_not_overlap() -> None:
    Draft202012Validator(SCHEMA).validate(DASHBOARD)
    assert "id" not in DASHBOARD  # of another Grafana's database
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [(x, y) for at in (panel["gridPos"] for panel in panels)
             for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]  # fmt: skip
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_it_asks_for_every_metric_by_its_tags_and_for_no_other() -> None:
    asked = set()
    for target in (target for panel in DASHBOARD["panels"] for target in panel["targets"]):
        ((name, selector),) = re.findall(r"\bray_(scl_ray_\w+)(\{.*?\})", target["expr"])
        name = name.removesuffix("_bucket")
        asked.add(name)
        assert selector == '{sweep=~"$sweep"}'
        (by,) = re.findall(r"by \((.*?)\)", target["expr"])
        assert set(by.split(", ")) - {"le"} == {"sweep", *METRICS[name].tags}
        assert ("rate(" in target["expr"] or "increase(" in target["expr"]) == (METRICS[name].kind.__name__ != "Gauge")
        assert name.endswith("_total") == (METRICS[name].kind.__name__ == "Counter")
    assert asked == METRICS.keys()


def test_its_variables_are_those_that_panels_use() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables.keys() == {"datasource", "sweep"}
    assert variables["sweep"]["query"]["query"] == "label_values(ray_scl_ray_trials, sweep)"
