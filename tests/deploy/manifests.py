"""What `kubectl apply -k` would send: the objects of an overlay, and the pods among them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT

OVERLAYS = ["cpu", "gpu"]
Object = dict[str, Any]


class Pod(NamedTuple):
    owner: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def rendered(overlay: str, folder: Path = ROOT / "k8s") -> list[Object]:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    command = ["kubectl", "kustomize", str(folder / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> list[Pod]:
    """Every pod that the objects will make, those of Ray included."""
    return [
        Pod(owner, template["metadata"]["labels"], template["spec"])
        for o in objects
        for owner, template in _templates(o)
    ]


def _templates(o: Object) -> Iterator[tuple[str, Object]]:
    kind, spec = o["kind"], o.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "Job"):
        yield f"{kind} {o['metadata']['name']}", spec["template"]
    elif kind == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"workers {group['groupName']}", group["template"]
    elif kind == "RayJob":
        yield "submitter", spec["submitterPodTemplate"]
