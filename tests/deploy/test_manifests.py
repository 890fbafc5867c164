"""Every object is one that Kubernetes and KubeRay take, and everything that it names is there."""

import functools
import importlib.metadata
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT, Outcome
from deploy.manifests import Object, only, pods
from jsonschema import Draft202012Validator

BIN = Path(sys.executable).parent


def test_every_object_is_what_kubernetes_and_kuberay_take(objects: list[Object]) -> None:
    kinds = set()
    for o in objects:
        if o["apiVersion"] == "ray.io/v1":
            errors = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in _kuberay(o["kind"]).iter_errors(o)]
            assert not errors, errors
        else:
            kubernetes_validate.validate(o, kubernetes_validate.latest_version(), strict=True)
        kinds.add(o["kind"])
    assert {"RayCluster", "RayJob", "Deployment", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget"} <= kinds


def test_a_misspelt_field_is_no_field_of_kuberays(objects: list[Object]) -> None:
    """The definitions are closed, so that what the test above finds right is right."""
    cluster = only(objects, "RayCluster", "scl-ray")
    for change in ({"authOption": {}}, {"workerGroupSpecs": [{"groupName": "a"}]}, {"rayVersion": 2.6}):
        assert not _kuberay("RayCluster").is_valid({**cluster, "spec": {**cluster["spec"], **change}})


def _kuberay(kind: str) -> Draft202012Validator:
    schema = json.loads(Path(__file__).with_name("kuberay_1.7.0.json").read_text())
    return Draft202012Validator(_closed({**schema, "$ref": f"#/$defs/{kind}"}))


def _closed(schema: Any) -> Any:
    """Kubernetes refuses what a definition does not name, where it names anything."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _closed(part) for key, part in schema.items()}
    is_open = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & schema.keys()
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        schema["additionalProperties"] = False
    return schema


def test_everything_is_in_the_one_namespace(objects: list[Object]) -> None:
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] != "Namespace"} == {"scl-ray"}


def test_ray_is_of_the_locked_version(objects: list[Object]) -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    (locked,) = [line.split()[0].removeprefix("ray==") for line in lock if line.startswith("ray==")]
    assert only(objects, "RayCluster", "scl-ray")["spec"]["rayVersion"] == locked == importlib.metadata.version("ray")


def test_what_is_referred_to_exists(objects: list[Object]) -> None:
    held = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    # The Secret's values are made by its Job, from the keys that it is told.
    makes = only(objects, "Job", "passwords")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert makes[2] == "passwords"
    keys = {("Secret", "passwords"): set(makes[3:])}
    keys |= {place: set(o.get("data", {})) for place, o in held.items() if place[0] == "ConfigMap"}
    references = 0
    for pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in held, pod.owner
            if files := volume.get("configMap"):
                assert ("ConfigMap", files["name"]) in held, pod.owner
        if pod.owner.startswith("StatefulSet"):
            claims = held["StatefulSet", pod.owner.split()[1]]["spec"]["volumeClaimTemplates"]
            volumes |= {claim["metadata"]["name"]: claim for claim in claims}
        account = pod.spec.get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in held, pod.owner
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes, (pod.owner, mount)
                source = volumes[mount["name"]].get("configMap")
                if source and "subPath" in mount:
                    assert mount["subPath"] in keys["ConfigMap", source["name"]]
            for variable in container.get("env", []):
                for kind, field in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
                    if reference := variable.get("valueFrom", {}).get(field):
                        assert reference["key"] in keys[kind, reference["name"]], (pod.owner, variable)
                        references += 1
            for source in container.get("envFrom", []):
                # Of an object store, which not everybody has.
                assert source == {"secretRef": {"name": "object-store", "optional": True}}
    assert references >= 6
    binding = held["RoleBinding", "passwords"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in held
    assert all((subject["kind"], subject["name"]) in held for subject in binding["subjects"])
    job = only(objects, "RayJob", "sweep")
    assert ("RayCluster", job["spec"]["clusterSelector"]["ray.io/cluster"]) in held


def test_every_service_finds_its_pods_and_their_port(objects: list[Object]) -> None:
    for service in (o for o in objects if o["kind"] == "Service"):
        (pod,) = [p for p in pods(objects) if service["spec"]["selector"].items() <= p.labels.items()]
        ports = {port["containerPort"] for container in pod.containers for port in container["ports"]}
        assert {port["port"] for port in service["spec"]["ports"]} <= ports


def test_every_command_starts_here(objects: list[Object], tmp_path: Path, run: Callable[..., Outcome]) -> None:
    """In the environment that the image is made of, with the arguments that the manifests give."""
    commands = [container["command"] for pod in pods(objects) for container in pod.containers if "command" in container]
    commands = [command for command in commands if command[0] in ("python", "mlflow")]
    assert len(commands) == 3
    for command in commands:
        if command[1] != "/passwords/passwords.py":  # see test_passwords.py
            _says_how_it_is_used(*command)
    words = shlex.split(only(objects, "RayJob", "sweep")["spec"]["entrypoint"])
    assert words[:2] == ["python", "/app/sweeps/on_demand.py"]
    cut = words.index("--")
    _says_how_it_is_used(*words[:cut])
    sweeping = words[cut + 1 :]
    assert sweeping[:2] == ["python", "/app/sweeps/full_grid.py"]
    grid = tmp_path / "sweep.yaml"
    grid.write_text(only(objects, "ConfigMap", "sweep")["data"]["sweep.yaml"])
    places = {"sweep.yaml": str(grid), "$RESULTS": str(tmp_path / "runs")}
    done = run(*(places.get(word, word) for word in sweeping[2:]), "--dry-run")
    assert done.code == 0, done.error
    assert "to train: " in done.out


@functools.cache  # the overlays share most of them
def _says_how_it_is_used(program: str, *arguments: str) -> None:
    words = [word.replace("/app/", f"{ROOT}/") for word in arguments]
    done = subprocess.run([str(BIN / program), *words, "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout.lower()


def test_the_job_asks_for_no_more_than_the_groups_may_grow_to(objects: list[Object], overlay: str) -> None:
    words = shlex.split(only(objects, "RayJob", "sweep")["spec"]["entrypoint"])
    asked = {flag: float(words[words.index(flag) + 1]) for flag in ("--slots", "--gpus") if flag in words}
    room = 0.0
    for group in only(objects, "RayCluster", "scl-ray")["spec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        has = {key: float(value) for key, value in container["resources"]["limits"].items() if key in RESOURCES}
        if "--gpus" in asked:
            room += group["maxReplicas"] * has.get("nvidia.com/gpu", 0) // asked["--gpus"]
        else:
            room += group["maxReplicas"] * has["cpu"]
    assert asked["--slots"] <= room
    assert ("--gpus" in asked) == (overlay == "gpu")


RESOURCES = ("cpu", "nvidia.com/gpu")


def test_the_overlays_run_the_grids_of_the_project(objects: list[Object], overlay: str) -> None:
    runs = yaml.safe_load(only(objects, "ConfigMap", "sweep")["data"]["sweep.yaml"])
    ours = yaml.safe_load((ROOT / "sweeps" / {"cpu": "demo.yaml", "gpu": "full_grid.yaml"}[overlay]).read_text())
    if overlay == "gpu":
        ours["dataset"]["root"] = "/shared/data"
    assert runs == ours


@pytest.mark.parametrize("overlay", ["gpu"], indirect=True)
def test_nodes_with_gpus_come_and_go(objects: list[Object], overlay: str) -> None:
    cluster = only(objects, "RayCluster", "scl-ray")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    assert groups["gpu"]["minReplicas"] == 0 < groups["gpu"]["maxReplicas"]
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
