"""What an administrator asks of the manifests, one question a test."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from deploy.manifests import Object, only, pods, rendered

NAMESPACE = "scl-ray"


def test_the_namespace_enforces_the_restricted_standard(objects: list[Object]) -> None:
    labels = only(objects, "Namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_pod_runs_as_root(objects: list[Object]) -> None:
    for pod in pods(objects):
        user = pod.spec["securityContext"]
        assert user["runAsNonRoot"] is True, pod.owner
        assert user["runAsUser"] >= 999, pod.owner
        assert all("runAsUser" not in _context(container) for container in pod.containers)


def test_every_root_file_system_is_read_only(objects: list[Object]) -> None:
    for name, context in _contexts(objects):
        assert context["readOnlyRootFilesystem"] is True, name


def test_no_container_has_a_capability_or_can_gain_one(objects: list[Object]) -> None:
    for name, context in _contexts(objects):
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert not context.get("privileged"), name


def test_every_pod_has_the_runtimes_seccomp_profile(objects: list[Object]) -> None:
    for pod in pods(objects):
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner


def test_no_pod_shares_anything_of_its_host(objects: list[Object]) -> None:
    for pod in pods(objects):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.owner
        assert all({"name"} < volume.keys() <= {"name", "configMap", "emptyDir", "persistentVolumeClaim"}
                   for volume in pod.spec.get("volumes", []))  # fmt: skip
        assert all("hostPort" not in port for container in pod.containers for port in container.get("ports", []))


def test_only_the_autoscaler_and_the_passwords_job_get_a_token_of_kubernetes(objects: list[Object]) -> None:
    with_token = {pod.owner for pod in pods(objects) if pod.spec.get("automountServiceAccountToken", True)}
    assert with_token == {"head", "Job passwords"}
    (rule,) = only(objects, "Role", "passwords")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["passwords"],
                    "verbs": ["get", "patch"]}  # fmt: skip
    assert not [o for o in objects if o["kind"] in ("ClusterRole", "ClusterRoleBinding")]


def test_every_container_has_requests_and_limits(objects: list[Object]) -> None:
    autoscaler = only(objects, "RayCluster", NAMESPACE)["spec"]["autoscalerOptions"]
    for container in [autoscaler, *(container for pod in pods(objects) for container in pod.containers)]:
        for amounts in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][amounts].keys(), container
        asked, allowed = (_mebibytes(container["resources"][amounts]["memory"]) for amounts in ("requests", "limits"))
        assert 0 < asked <= allowed


def _mebibytes(text: str) -> int:
    return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


def test_the_head_is_not_evicted(objects: list[Object]) -> None:
    budget = only(objects, "PodDisruptionBudget", "head")["spec"]
    (head,) = [pod for pod in pods(objects) if pod.owner == "head"]
    assert budget["minAvailable"] == 1
    assert "maxUnavailable" not in budget
    assert budget["selector"]["matchLabels"].items() <= head.labels.items()


def test_ray_asks_for_its_token(objects: list[Object]) -> None:
    assert only(objects, "RayCluster", NAMESPACE)["spec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in (ROOT / "Dockerfile").read_text()
    for pod in pods(objects):
        names = {variable["name"] for container in pod.containers for variable in container.get("env", [])}
        assert not names & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}, pod.owner  # nothing overrides KubeRay's


def test_mlflow_asks_who_it_is_and_answers_to_its_own_names_alone(objects: list[Object]) -> None:
    (container,) = only(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (hosts,) = [word.removeprefix("--allowed-hosts=") for word in container["command"] if "allowed-hosts" in word]
    assert "--app-name=basic-auth" in container["command"]
    assert set(hosts.split(",")) == {"mlflow:5000", "localhost:5000", "127.0.0.1:5000"}
    assert "default_permission = READ" in (ROOT / "k8s/mlflow_auth.ini").read_text()


def test_no_secret_has_a_value_here(objects: list[Object]) -> None:
    """They come from Secrets, and those from no file of the project."""
    for secret in (o for o in objects if o["kind"] == "Secret"):
        assert not {"data", "stringData"} & secret.keys()
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], (pod.owner, variable["name"])
            uris = re.findall(r"\w://\S*", json.dumps([container.get("command"), container.get("env")]))
            assert not [uri for uri in uris if re.match(r"\w://[^/@]*:[^/@]*@", uri)]


# Who reaches whom, and where; see `_reaches` for what outsiders are.
PORTS = {"head": [6379, 8080, 8265, 10001, 52365], "worker": [8080, 10002, 52365], "mlflow": [5000], "postgres": [5432]}
ALLOWED = {
    ("head", "worker"): PORTS["worker"],
    ("worker", "worker"): PORTS["worker"],
    ("worker", "head"): PORTS["head"],
    ("head", "head"): PORTS["head"],
    ("head", "mlflow"): PORTS["mlflow"],
    ("worker", "mlflow"): PORTS["mlflow"],
    ("submitter", "head"): [8265],
    ("kuberay", "head"): [8265],
    ("mlflow", "postgres"): PORTS["postgres"],
}
OUTSIDERS = {
    "stranger": ({"app": "stranger"}, "elsewhere"),
    "neighbour": ({"app": "stranger"}, NAMESPACE),
    # Whoever calls themselves a part of it in another namespace is none.
    "impostor": ({"scl-ray/role": "head"}, "elsewhere"),
    "kuberay": ({"app.kubernetes.io/name": "kuberay-operator"}, "operators"),
    "prometheus": ({"app.kubernetes.io/name": "prometheus"}, "monitoring"),
}


def test_only_those_reach_a_part_who_need_it(objects: list[Object]) -> None:
    assert {"head", "worker", "submitter", "mlflow", "postgres", "passwords"} <= _parties(objects).keys()
    wanted = {(*pair, port) for pair, ports in ALLOWED.items() for port in ports}
    # Ray chooses ports, so between its nodes all are open.
    wanted |= {(source, target, 22) for source in ("head", "worker") for target in ("head", "worker")}
    assert _ways(objects) == wanted


def test_prometheus_reads_metrics_where_it_is_let_in(overlay: str, objects: list[Object], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    with (tmp_path / "k8s/overlays" / overlay / "kustomization.yaml").open("a") as kustomization:
        kustomization.write("components: [../../prometheus]\n")
    admitting = rendered(overlay, tmp_path / "k8s")
    metrics = {("prometheus", "head", 8080), ("prometheus", "worker", 8080)}
    assert _ways(admitting) - _ways(objects) == metrics

    monitor = only(admitting, "PodMonitor", "ray")
    assert monitor["metadata"]["namespace"] == NAMESPACE
    read = {pod.labels["scl-ray/role"] for pod in pods(admitting) if _selects(monitor["spec"]["selector"], pod.labels)}
    assert read == {"head", "worker"}


def test_the_database_and_mlflow_send_nothing_out(objects: list[Object]) -> None:
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    labels = {pod.labels["scl-ray/role"]: pod.labels for pod in pods(objects)}
    stranger = ({"app": "stranger"}, "elsewhere")
    for role in ("postgres", "mlflow"):
        assert not _lets(policies, "egress", labels[role], stranger, 443), role
    assert _lets(policies, "egress", labels["mlflow"], ({"k8s-app": "kube-dns"}, "kube-system"), 53)
    assert _lets(policies, "egress", labels["head"], stranger, 443)  # object stores, data sets


Party = tuple[dict[str, str], str]  # labels of a pod, and its namespace


def _parties(objects: list[Object]) -> dict[str, Party]:
    return {pod.labels["scl-ray/role"]: (pod.labels, NAMESPACE) for pod in pods(objects)} | OUTSIDERS


def _ways(objects: list[Object]) -> set[tuple[str, str, int]]:
    """Who reaches which of our pods at which port."""
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    parties = _parties(objects)
    return {
        (source, target, port)
        for source in parties
        for target in parties.keys() - OUTSIDERS.keys()
        for port in (*PORTS.get(target, [22]), 22)
        if _reaches(policies, parties[source], parties[target], port)
    }


def _reaches(policies: list[Object], source: Party, target: Party, port: int) -> bool:
    """Whether a pod of our namespace, or another's, reaches one of ours there, by the rules of NetworkPolicies."""
    sends = source[1] != NAMESPACE or _lets(policies, "egress", source[0], target, port)
    return sends and _lets(policies, "ingress", target[0], source, port)


def _lets(policies: list[Object], direction: str, pod: dict[str, str], peer: Party, port: int) -> bool:
    about = [policy for policy in policies if direction.capitalize() in policy["policyTypes"]]
    selecting = [policy for policy in about if _selects(policy["podSelector"], pod)]
    return not selecting or any(
        _matches(rule, direction, peer, port) for policy in selecting for rule in policy.get(direction, [])
    )


def _matches(rule: Object, direction: str, peer: Party, port: int) -> bool:
    peers = rule.get("from" if direction == "ingress" else "to")
    ports = rule.get("ports")
    at_port = ports is None or any(entry["port"] == port for entry in ports)
    return at_port and (peers is None or any(_is(entry, peer) for entry in peers))


def _is(entry: Object, peer: Party) -> bool:
    assert entry.keys() <= {"podSelector", "namespaceSelector"}
    labels, namespace = peer
    if "namespaceSelector" in entry:
        assert entry["namespaceSelector"] == {}  # all of them
    elif namespace != NAMESPACE:
        return False
    return _selects(entry.get("podSelector", {}), labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _context(container: Object) -> dict[str, Any]:
    return dict(container.get("securityContext", {}))


def _contexts(objects: list[Object]) -> list[tuple[str, dict[str, Any]]]:
    """Of every container, that which KubeRay adds for the autoscaler among them."""
    found = [(f"{pod.owner}: {c['name']}", _context(c)) for pod in pods(objects) for c in pod.containers]
    autoscaler = only(objects, "RayCluster", NAMESPACE)["spec"]["autoscalerOptions"]
    return [*found, ("autoscaler", _context(autoscaler))]


def test_the_image_runs_as_nobody_in_particular_and_keeps_no_compiler() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    assert len(stages) > 2
    assert re.search(r"^USER 1000:1000$", stages[-1], re.MULTILINE)
    assert not re.search(r"apt-get|gcc|build-essential|pip install", stages[-1])
    assert "HEALTHCHECK" in stages[-1]


@pytest.mark.parametrize("file", ["docker-compose.yml", "Dockerfile", ".env.example"])
def test_no_password_is_committed(file: str) -> None:
    for line in Path(ROOT, file).read_text().splitlines():
        if match := re.search(r"(?:PASSWORD|TOKEN|SECRET_KEY)\s*[:=](.*)", line):
            value = match[1].strip()
            assert not value or value.startswith("${"), line
