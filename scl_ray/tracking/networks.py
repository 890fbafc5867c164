"""Trained networks as models in MLflow, which `mlflow.pytorch.load_model` loads without this package.

A model is a copy of the checkpoint: its weights with the graph of what is computed with them, as torch.export writes
it, and so without a pickle. It takes as much storage again as the checkpoint does.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scl_ray.store import Store
from scl_ray.tracking import connection
from scl_ray.tracking.entries import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NAME = "network"  # the model's name, and the tag of a run that says where its model is
LOGGED = "scl_ray.network"  # tag: which training the model is of, written last


def log_networks(
    uri: str, name: str, store: Store, records: Iterable[Record], go_on: Callable[[], bool] = lambda: True
) -> set[str]:
    """Log the network of each trained trial that has a run without one, as its model ``network``.

    The model takes pixels in [0, 1], (N, C, S, S) float32, and gives class scores (N, K), whose softmax is calibrated
    on validation images. *store* holds the checkpoints. After each network *go_on* is asked whether to log another. A
    network that torch.export cannot trace has no model, and its run's tag ``network`` says why. Returns the trials that
    still lack their network: MLflow was too slow, or memory, say, did not suffice. Raises TrackingError when MLflow is
    away.
    """
    with connection.reported(uri):
        held = {trial: logged for trial, (logged, _) in connection.held(uri, name, LOGGED).items()}
    trained = {record["trial"]: record["finished"] for record in records if record.get("status") == "trained"}
    wanted = {trial: finished for trial, finished in trained.items() if held.get(trial) != finished}
    if not wanted:
        return set()
    with connection.reported(uri):
        client = connection.client(uri)
        experiment = client.get_experiment_by_name(name)
        found = connection.runs_of(client, experiment.experiment_id, wanted) if experiment else {}
        runs = {trial: run for trial, (run, *_) in found.items()}
        logged = {trial: run.data.tags.get(LOGGED) for trial, run in runs.items()}
        lacking = [trial for trial in wanted if logged.get(trial) != wanted[trial] and store.is_trained(trial)]
        for trial in filter(runs.get, lacking):
            run_id = runs[trial].info.run_id
            where = _log(client, runs[trial], store, trial)
            if where is not None:
                client.set_tag(run_id, NAME, where, synchronous=True)
                client.set_tag(run_id, LOGGED, wanted[trial], synchronous=True)
                logged[trial] = wanted[trial]
            if not go_on():
                break
    return {trial for trial in lacking if logged.get(trial) != wanted[trial]}


def _log(client: "MlflowClient", run: "Run", store: Store, trial: str) -> str | None:
    """Log one network. Returns the URI of its model, or why it cannot have one, or None when it has none for now."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    from scl_ray.tracking import classifier

    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        about = Model(run_id=run_id, artifact_path=NAME)
        try:
            classifier.save(store, trial, folder, about)
        except (OSError, MlflowException):
            raise
        except Exception:  # a network of the user's own may raise anything when it is traced
            why = classifier.untraceable(store, trial)
            return f"none: {type(why).__name__}: {connection.reason(why)}" if why else None
        # What a log that was interrupted has begun is completed; a server that answered too late began it twice.
        begun = list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"))
        begun.sort(key=lambda model: (model.status != "READY", model.model_id))
        for double in begun[1:]:
            client.delete_logged_model(double.model_id)
        model = begun[0] if begun else client.create_logged_model(
            experiment_id, NAME, run_id, {"trial": trial}, run.data.params, "image classifier")  # fmt: skip
        about.model_id = model.model_id
        about.save(str(folder / "MLmodel"))
        with connection.artifacts_stored():
            client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    if not (run.outputs and run.outputs.model_outputs):  # MLflow refuses to be told twice
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return f"models:/{model.model_id}"
