"""What the program does with input that means harm, and with what it is trusted with."""

import ast
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import DEMO, ROOT, Outcome

from scl_ray import config
from scl_ray.tracking import connection

Run = Callable[..., Outcome]

OUTSIDE = ["../outside", "..", "/tmp/outside", "a/b", "a\\b", "~", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "here/runs"
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**yaml.safe_load(DEMO.read_text()), "name": name}))
    for arguments in (["--config", DEMO, f"--name={name}"], ["--config", grid]):
        done = run(*arguments, "--out", out)
        assert done.code == 2
        assert done.error.startswith("refused: ")
        assert "name" in done.error
    assert {path.name for path in tmp_path.rglob("*")} == {"grid.yaml"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_label_or_name_of_a_checkpoint_does_either(name: str) -> None:
    from evaluate import main  # of sweeps/

    arguments = ["--checkpoint", "a.safetensors", "--model", "torchvision.models:resnet18", "--dataset", "digits",
                 "--mean", "0.5", "--std", "0.5", "--methods", "grad_cam", "--metrics", "complexity"]  # fmt: skip
    assert main([*arguments, f"--name={name}", "--dry-run"]) == 2


HARM = "!!python/object/apply:os.mkdir [{}]"


def test_yaml_makes_no_objects(tmp_path: Path, run: Run) -> None:
    trace = tmp_path / "trace"
    harm = HARM.format(trace)
    # It would do harm where YAML makes objects.
    yaml.unsafe_load(harm)
    trace.rmdir()
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"{DEMO.read_text()}\nharm: {harm}\n")
    for arguments in (["--config", grid], ["--config", DEMO, "--set", f"training.epochs={harm}"]):
        done = run(*arguments, "--out", tmp_path / "runs")
        assert done.code == 2
        assert "is not valid YAML" in done.error
    assert not trace.exists()


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the program: where it stands, of what, and its arguments."""
    for folder in ("scl_ray", "sweeps", "k8s"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_nothing_in_the_program_runs_what_it_reads() -> None:
    calls = list(_calls())
    assert len(calls) > 5000
    never = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load",
             "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "pd.read_pickle"}  # fmt: skip
    assert [place for place, called, _ in calls if called in never] == []
    for place, called, call in calls:
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert "shell" not in words, place
        assert words.get("allow_pickle", "False") == "False", place
        if called == "torch.load":
            assert words["weights_only"] == "True", place


def test_what_a_finished_sweep_holds_is_no_secret(finished_sweep: Path) -> None:
    """Nor the configuration that it keeps anything but the configuration."""
    held = yaml.safe_load((finished_sweep / "demo/sweep.yaml").read_text())
    assert held.keys() - set(config.Sweep.model_fields) <= {"schema"}
    token = Path.home() / ".ray/auth_token"
    secrets = [token.read_bytes().strip()] if token.exists() else []
    pattern = ("PASSWORD", "TOKEN", "SECRET", "ACCESS_KEY")
    secrets += [value.encode() for name, value in os.environ.items() if len(value) > 8 and name.endswith(pattern)]
    assert secrets  # Ray's, at least
    files = [path for path in finished_sweep.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path


class Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:verysecret@127.0.0.1:{server.server_port}")
        done = run("--config", DEMO, "--out", tmp_path / "runs")
        server.shutdown()
        thread.join()
    assert done.code == 2
    assert f"MLflow at http://127.0.0.1:{server.server_port} cannot be used" in done.error
    assert "verysecret" not in done.error + done.out
    database = "postgresql://somebody:verysecret@127.0.0.1:9/mlflow"
    assert "verysecret" not in connection.unusable(database, f"cannot connect to {database}")
