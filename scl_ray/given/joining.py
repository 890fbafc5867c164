"""How given networks come to stand side by side: read from their files, tried, calibrated and put into the store."""

import difflib
import hashlib
import platform
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from scl_ray import attribution, calibration, metrics, plugins, specs
from scl_ray.config import Evaluation, InputError, digest
from scl_ray.datasets import Dataset
from scl_ray.evaluation import reference_images
from scl_ray.given import checkpoint, images, labels, weights
from scl_ray.given.checkpoint import GivenClassifier
from scl_ray.given.config import Asked, Network
from scl_ray.store import Store

AT_ONCE = 64  # images in a pass that calibrates
OF_CLASS = ("prototype", "corpus")  # targets that need images of whichever class the network predicts
DRAWS = "gradient_shap"  # takes its baselines from other images where there are some; its values must not mix the two

Networks = dict[str, Network]


def read(asked: Asked, dataset: Dataset) -> dict[str, tuple[Network, GivenClassifier]]:
    """The networks asked for, by identity, not calibrated. Raises InputError for one that cannot be evaluated."""
    names, count = asked.label or tuple(path.stem for path in asked.checkpoint), len(asked.checkpoint)
    if len(names) not in (1, count):
        raise InputError(f"--label: gives {len(names)} labels for {count} checkpoints; give one each or one for all")
    found: dict[str, tuple[Network, GivenClassifier]] = {}
    for path, label in zip(asked.checkpoint, names * (count // len(names)), strict=True):
        network, classifier = _read(asked, path, label, dataset)
        if network.identity in found:
            raise InputError(f"--checkpoint {path}: holds the same weights as another one given; leave one out")
        found[network.identity] = network, classifier
    return found


def _read(asked: Asked, path: Path, label: str, dataset: Dataset) -> tuple[Network, GivenClassifier]:
    network, arguments = weights.network_of(path, asked.model)
    if asked.layer is not None:
        _check_layer(network, asked.layer)
    count = _outputs(network, images.normalised(dataset.test_images[:1], asked.mean, asked.std), asked.model)
    outputs = labels.outputs(dataset.classes, count, asked.labels)
    classifier = GivenClassifier(
        asked.model, arguments, network, asked.layer, 1.0, outputs.names, dataset.image_size, asked.mean, asked.std
    )
    return Network(
        label=label,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        validation=asked.dataset.validation,
        image_size=dataset.image_size,
        model=asked.model,
        arguments=arguments,
        code=_code(asked.model),
        weights=hashlib.sha256(checkpoint.to_files(classifier)["weights.safetensors"]).hexdigest(),
        layer=asked.layer,
        outputs=outputs.of_classes,
        mean=asked.mean,
        std=asked.std,
    ), classifier


def _check_layer(network: nn.Module, layer: str) -> None:
    known = [name for name, _ in network.named_modules() if name]
    if layer not in known:
        close = difflib.get_close_matches(layer, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known[:20])}"
        raise InputError(f"--layer {layer}: the network has no such module; {hint}")


@torch.no_grad()
def _outputs(network: nn.Module, image: Tensor, model: str) -> int:
    """How many classes the network scores. Raises InputError when it does not take the image or gives no scores."""
    shape = "x".join(map(str, image.shape[1:]))
    try:
        scores = network(image)
    except Exception as error:  # a user's network may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--model {model}: takes no images of {shape} ({reason}); change --image-size, or give one "
                         "value of --mean and --std for a network of grey images") from error  # fmt: skip
    if isinstance(scores, Tensor) and not scores.isfinite().all():
        raise InputError(f"--model {model}: gives scores that are not finite; give other weights, and --mean and --std "
                         "as the network was trained with")  # fmt: skip
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1 or scores.shape[1] < 2:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"--model {model}: makes {given} of one image; give one that returns class scores (N, K)")
    return scores.shape[1]


def earlier(store: Store, dataset: Dataset, channels: int, validation: float) -> tuple[Networks, list[str]]:
    """The networks that the store holds already, in the order they came, and what is left out, with the reason.

    Raises InputError when they were evaluated on other images, which cannot be compared with these.
    """
    kept: Networks = {}
    left_out: list[str] = []
    for trial_id in (store.read_json("plan.json") or {"trials": []})["trials"]:
        record = store.record(trial_id)
        if record is None or not store.is_trained(trial_id):
            continue  # its command was stopped before it was there, and brings it again
        network = Network.model_validate(record["configuration"]["network"])
        if network.images != (dataset.fingerprint, dataset.image_size, channels, validation):
            raise InputError(f"--dataset: {network.label!r}, which lies under the same --name, was evaluated on other "
                             "images, or at another size or number of channels; choose another --name")  # fmt: skip
        if network.code == _code(network.model):
            kept[trial_id] = network
        else:
            left_out.append(f"{network.label} ({trial_id}): {network.model} is not what it was")
    return kept, left_out


def _code(model: str) -> str:
    """A hash of the user's own source that *model* lives in; of a library's it is the same for all."""
    try:
        return digest(plugins.bundle([model]))
    except ValueError as error:
        return str(error)


def together(known: Networks, new: Mapping[str, Network], is_labelled: bool) -> Networks:
    """Known and new networks, each told apart. Of those that are given the same label, each counts as another seed.

    Raises InputError for a label that was not given and is taken, and for another label of a known network.
    """
    networks = dict(known)
    for trial_id, network in new.items():
        if trial_id in known:
            if is_labelled and known[trial_id].label != network.label:
                raise InputError(f"--label {network.label}: these weights are there as {known[trial_id].label!r} "
                                 "already; leave --label out or choose another --name")  # fmt: skip
            continue
        taken = [other.seed for other in networks.values() if other.label == network.label]
        if taken and not is_labelled:
            raise InputError(f"--checkpoint: other weights are there as {network.label!r} already; give a --label, or "
                             "the same one to count as another seed of one recipe")  # fmt: skip
        networks[trial_id] = network.model_copy(update={"seed": 1 + max(taken, default=-1)})
    return networks


def check(classifier: GivenClassifier, dataset: Dataset, evaluation: Evaluation) -> None:
    """Raise InputError when the network, tried on one image, does not suit one of the methods or metrics."""
    chosen = reference_images(dataset)
    mean, std, compared = classifier.mean, classifier.std, torch.tensor(dataset.train_labels[chosen])
    most = len(dataset.test_labels) - images.kept_to_compare(dataset)
    hint = "" if len(chosen) else f"; to have images to compare with, evaluate at most {most}, by --images"
    for metric in evaluation.metrics:
        if "reference" in metrics.resolve(metric).entry.needs and not len(chosen):
            raise InputError(f"--metrics: {metric} compares with other images{hint}")
    for method in evaluation.methods:
        if specs.parse(method)[0] == DRAWS and not len(chosen):
            raise InputError(f"--methods: {method} draws its baselines from other images{hint}")
        is_of_class = attribution.resolve(method).parameters.get("target") in OF_CLASS
        if is_of_class and 0 < len(compared.unique()) < len(classifier.classes):
            raise InputError(f"--methods: {method} compares with images of the predicted class, and the dataset has "
                             f"some of {len(compared.unique())} of the {len(classifier.classes)} that the network "
                             "knows; leave it out")  # fmt: skip
    batch = attribution.Batch(
        classifier.explained(),
        images.normalised(dataset.test_images[:1], mean, std),
        torch.zeros(1, dtype=torch.int64),
        mean=mean,
        std=std,
        reference=images.normalised(dataset.train_images[chosen], mean, std) if len(chosen) else None,
        reference_labels=compared if len(chosen) else None,
    )
    try:
        attribution.check(batch, evaluation.methods)
        metrics.check(batch, evaluation.metrics)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--methods, --metrics: not all of them suit {classifier.model} ({reason}){hint}") from error


def join(store: Store, trial_id: str, about: Mapping[str, object], classifier: GivenClassifier, data: Dataset) -> str:
    """Calibrate a network on the dataset's validation images and put it into the store. Returns what was done."""
    count = len(data.validation_labels)
    said = f"not calibrated: {data.name} has no validation images, so its probabilities are its own"
    if count:
        classifier = replace(classifier, temperature=_temperature(classifier, data))
        said = f"calibrated by temperature {classifier.temperature:.3g}, fitted on {count} validation images"
    weights = store.write_checkpoint(trial_id, checkpoint.to_files(classifier))
    store.write_record(trial_id, {
        **about,
        "status": "trained",
        "checkpoint": f"checkpoints/{trial_id}",
        "weights_sha256": weights,
        "readouts": {protocol: classifier.readout_name(protocol) for protocol in ("corrected", "published")},
        "classes": list(classifier.classes),
        "epochs": [],
        "metrics": {"temperature": classifier.temperature, "calibration_images": count},
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else
        platform.processor() or platform.machine(),
        "finished": time.strftime("%FT%TZ", time.gmtime()),
        "versions": {name: version(name) for name in ("scl_ray", "torch", "torchvision", "captum")},
    })  # fmt: skip
    return said


@torch.no_grad()
def _temperature(classifier: GivenClassifier, data: Dataset) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = classifier.explained("published").to(device)
    scores = [
        network(images.normalised(data.validation_images[first : first + AT_ONCE], classifier.mean, classifier.std)
                .to(device)).cpu()
        for first in range(0, len(data.validation_labels), AT_ONCE)
    ]  # fmt: skip
    network.cpu()
    return calibration.fit_temperature(torch.cat(scores), torch.tensor(data.validation_labels))


def several(networks: Iterable[Network]) -> list[str]:
    """The labels that stand for more than one network."""
    names = [network.label for network in networks]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
