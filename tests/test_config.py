"""What a sweep is: grid expansion, identity, and every refusal in one sentence."""

import hashlib
from pathlib import Path

import pytest
import yaml

from scl_ray import config
from scl_ray.config import InputError
from scl_ray.training import TRAINING_VERSION

DEMO = Path(__file__).parents[1] / "sweeps/demo.yaml"


def load(*overrides: str) -> config.Sweep:
    return config.load(DEMO, overrides)


def identities(*overrides: str) -> list[str]:
    return [trial.identity("fingerprint", 32) for trial in load(*overrides).trials()]


def test_a_temperature_axis_multiplies_only_objectives_that_have_one() -> None:
    labels = [trial.label for trial in load("grid.seed=[0]").trials()]
    assert labels == [
        "cross_entropy · resnet8 · seed 0",
        "supcon τ=0.07 · resnet8 · seed 0",
        "supcon τ=0.5 · resnet8 · seed 0",
        "triplet margin=0.3 · resnet8 · seed 0",
    ]


def test_the_full_grid_counts() -> None:
    assert len(config.load(DEMO.with_name("full_grid.yaml")).trials()) == (1 + 6 + 1 + 6) * 2 * 5


def test_axes_may_be_lists_or_single_values_and_repeat_nothing() -> None:
    assert identities("grid.backbone=[resnet8]", "grid.seed=[0, 1, 0]") == identities("grid.backbone=resnet8")


def test_parameters_of_a_metric_learning_loss_are_axes_too() -> None:
    sweep = load("grid.objective=[{name: ContrastiveLoss, parameters: {pos_margin: [0, 0.1], neg_margin: 1}}]")
    assert [o.parameters for o in sweep.grid.objective] == [
        {"pos_margin": 0, "neg_margin": 1}, {"pos_margin": 0.1, "neg_margin": 1}
    ]  # fmt: skip


def test_an_objective_overrides_the_recipe_for_itself_alone() -> None:
    sweep = load("grid.objective=[cross_entropy, {name: supcon, training: {epochs: 9}}]", "training.epochs=3")
    assert {t.objective.name: t.training.epochs for t in sweep.trials()} == {"cross_entropy": 3, "supcon": 9}


def test_identity_ignores_how_the_grid_was_written(tmp_path: Path) -> None:
    def reordered(value: object) -> object:
        return {k: reordered(value[k]) for k in sorted(value, reverse=True)} if isinstance(value, dict) else value

    settings = yaml.safe_load(DEMO.read_text())
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(reordered(settings), sort_keys=False))
    assert [t.identity("f", 32) for t in config.load(path).trials()] == [t.identity("f", 32) for t in load().trials()]

    one_by_one = "[cross_entropy, {name: supcon, temperature: 0.07}, {temperature: 0.5, name: supcon}, triplet]"
    both = "[{name: supcon, temperature: [0.5, 0.07]}]"
    assert set(identities(f"grid.objective={one_by_one}")) >= set(identities(f"grid.objective={both}"))
    # A default that is written out, a recipe in the objective or for all: the same trial.
    assert identities("grid.objective=[{name: triplet, margin: 0.3, training: {epochs: 4}}]") == identities(
        "grid.objective=triplet", "training.epochs=4", "training.momentum=0.9"
    )


@pytest.mark.parametrize(
    "override",
    ["training.epochs=7", "training.augmentation=none", "grid.seed=[5, 6]", "grid.backbone=resnet20",
     "dataset.validation=0.2", "grid.objective=[{name: triplet, mining: hard}]"],
)  # fmt: skip
def test_identity_depends_on_what_decides_the_checkpoint(override: str) -> None:
    assert not set(identities(override)) & set(identities())


@pytest.mark.parametrize(
    "override",
    ["evaluation.images=9", "evaluation.methods=[saliency]", "resources.train.cpus=2", "dataset.download=true",
     "dataset.root=/elsewhere", "name=other", "training.workers=4", "early_stopping={}"],
)  # fmt: skip
def test_identity_does_not_depend_on_anything_else(override: str) -> None:
    assert identities(override) == identities()


def test_identity_does_not_depend_on_how_a_number_is_written() -> None:
    one = "grid.objective=[{name: ContrastiveLoss, parameters: {neg_margin: %s}}]"
    assert identities(one % "1") == identities(one % "1.0") != identities(one % "1.5")


def test_identity_depends_on_the_data() -> None:
    trial = load().trials()[0]
    assert len({trial.identity("a", 32), trial.identity("b", 32), trial.identity("a", 64)}) == 3
    assert len(trial.identity("a", 32)) == 12


def test_identity_is_the_hash_of_what_is_not_default_so_that_older_sweeps_are_found() -> None:
    settings = {
        "dataset": {"name": "digits", "download": True},
        "objective": {"name": "supcon", "temperature": 0.5},
        "backbone": "resnet8",
        "seed": 3,
        "training": {"epochs": 2, "momentum": 0.9, "learning_rate": 1.0},
    }
    known = (
        '{"backbone":"resnet8","code":{},"dataset":{"fingerprint":"f","image_size":32,"validation":0.1},'
        '"objective":{"name":"supcon","temperature":0.5},"seed":3,"training":{"epochs":2,"learning_rate":1},'
        f'"version":{TRAINING_VERSION}}}'
    )
    expected = hashlib.sha256(known.encode()).hexdigest()[:12]
    assert config.Trial.model_validate(settings).identity("f", 32) == expected


def test_identity_follows_the_source_of_a_users_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "my_losses_for_identity.py"
    module.write_text("def pull(embeddings, labels, weight=1.0):\n    return weight * embeddings.var()\n")
    monkeypatch.syspath_prepend(tmp_path)
    override = "grid.objective=[{name: 'my_losses_for_identity:pull', parameters: {weight: [1, 2]}}]"
    before = identities(override)
    assert len(set(before)) == 4
    assert load(override).plugin_names() == ["my_losses_for_identity:pull"]
    module.write_text(module.read_text() + "# edited\n")
    assert not set(before) & set(identities(override))


def test_specs_are_canonical_and_lists_are_axes() -> None:
    evaluation = load(
        "evaluation.metrics=['ssim_continuity[noise=0.10]', {name: ssim_continuity, noise: [0.02, 0.1]}]"
    ).evaluation
    assert evaluation.metrics == ["ssim_continuity[noise=0.1]", "ssim_continuity"]


def test_protocol_is_a_parameter_of_every_spec() -> None:
    evaluation = load(
        "evaluation.protocol=[published, corrected]", "evaluation.methods=grad_cam", "evaluation.metrics=complexity"
    ).evaluation
    assert evaluation.methods == ["grad_cam[protocol=published]", "grad_cam"]
    assert evaluation.metrics == ["complexity[protocol=published]", "complexity"]


def test_target_and_precision_are_parameters_of_the_specs_that_have_them() -> None:
    evaluation = load(
        "evaluation.target=[class_score, prototype]", "evaluation.precision=bfloat16",
        "evaluation.methods=[grad_cam, eigen_cam, {name: saliency, target: corpus}, 'hires_cam[target=class_score]']",
        "evaluation.metrics=[pixel_flipping_auc, complexity, 'prediction_flip_auc[precision=float32]']",
    ).evaluation  # fmt: skip
    assert evaluation.methods == [
        "grad_cam", "grad_cam[target=prototype]", "eigen_cam", "saliency[target=corpus]", "hires_cam"
    ]  # fmt: skip
    assert evaluation.metrics == ["pixel_flipping_auc[precision=bfloat16]", "complexity", "prediction_flip_auc"]


def test_a_parameter_of_the_users_own_is_not_taken_for_a_shared_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def total(model, images, targets, maps, precision=3):\n    return maps.sum((1, 2))\n"
    (tmp_path / "my_metric_with_precision.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    metric = "my_metric_with_precision:total"
    assert load("evaluation.precision=bfloat16", f"evaluation.metrics=['{metric}']").evaluation.metrics == [metric]


def test_every_target_may_be_configured() -> None:
    from scl_ray.attribution import TARGETS

    assert load(f"evaluation.target=[{','.join(TARGETS)}]").evaluation.target == list(TARGETS)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "evaluation.target=[prototype, class_score]",
            "evaluation.methods=[grad_cam, 'input_x_gradient[target=class_score]']",
        ],
        ["evaluation.precision=bfloat16", "evaluation.metrics=['pixel_flipping_auc[precision=float32]']"],
        ["evaluation.protocol=[corrected, published]", "evaluation.methods=['grad_cam[protocol=corrected]']"],
    ],
)
def test_what_an_entry_says_itself_is_still_said_when_read_again(tmp_path: Path, overrides: list[str]) -> None:
    sweep = load(*overrides)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep.model_dump(mode="json")))
    assert config.load(path) == sweep


def test_the_resolved_configuration_reads_back_as_the_same_sweep(tmp_path: Path) -> None:
    sweep = load("evaluation.protocol=[published, corrected]", "grid.objective=[{name: supcon, training: {epochs: 9}}]")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep.model_dump(mode="json")))
    assert config.load(path) == sweep


@pytest.mark.parametrize(
    ("override", "key", "fix"),
    [
        ("training.epoch=3", "training.epoch", "did you mean 'epochs'?"),
        ("colour=red", "colour", "unknown key"),
        ("grid.objective=[{name: cross_entropy, temperature: 0.1}]", "cross_entropy.temperature", "unknown key"),
        ("name=mlflow.db", "name", "is where MLflow keeps its own"),
        ("name=mlartifacts", "name", "is where MLflow keeps its own"),
        ("grid.objective=[{name: triplet, margin: -1}]", "triplet.margin", "greater than or equal to 0"),
        ("grid.objective=[{name: supcon, temperature: [0.1, 0]}]", "supcon.temperature", "greater than 0"),
        ("grid.objective=[{name: supcon, training: {epoch: 3}}]", "supcon.training.epoch", "did you mean 'epochs'?"),
        ("grid.objective=supconn", "grid.objective", "there is no objective 'supconn'"),
        ("grid.objective=[{name: ContrastiveLoss, parameters: {m: 1}}]", "grid.objective", "ContrastiveLoss"),
        ("grid.objective=[{name: 'no_module:loss'}]", "grid.objective.name", "write module:callable"),
        ("grid.objective=[]", "grid.objective", "is empty"),
        ("grid.seed=[]", "grid.seed", "is empty"),
        ("grid.objective=[cross_entropy, {name: supcon, temperature: []}]", "grid", "temperature: is an empty list"),
        ("grid.objective=[{name: triplet, margin: .inf}]", "triplet.margin", "finite"),
        ("evaluation.methods=['grad_cam[protocol=published]']", "evaluation.methods", "evaluation.protocol"),
        ("grid.backbone=[]", "grid.backbone", "is empty"),
        ("grid.seed=-1", "grid.seed", "greater than or equal to 0"),
        ("grid.backbone=resnet9", "grid.backbone", "did you mean 'resnet8'?"),
        ("dataset.name=cifar", "dataset.name", "did you mean 'cifar10'?"),
        ("evaluation.methods=[gradcam]", "evaluation.methods", "did you mean 'grad_cam'?"),
        ("evaluation.metrics=[complexty]", "evaluation.metrics", "did you mean 'complexity'?"),
        ("evaluation.metrics=[{name: ssim_continuity, noise: -1}]", "evaluation.metrics", "a number above 0"),
        ("evaluation.metrics=[{name: complexity, depth: 1}]", "evaluation.metrics", "no parameter 'depth'"),
        ("evaluation.images=0", "evaluation.images", "greater than or equal to 1"),
        ("evaluation.protocol=both", "evaluation.protocol", "'corrected' or 'published'"),
        ("evaluation.target=logit", "evaluation.target", "'class_score', 'prototype'"),
        ("evaluation.precision=float16", "evaluation.precision", "'float32' or 'bfloat16'"),
        ("resources.evaluate.memory=0", "resources.evaluate.memory", "greater than 0"),
        ("resources.train.memory=1", "resources.train.memory", "unknown key"),
        ("training.learning_rate=fast", "training.learning_rate", "number"),
        ("training.augmentation=blur", "training.augmentation", "choose from"),
        ("training=3", "training", "keys of its own"),
        ("training.workers=3", "training.workers", "3 workers cannot share a batch of 32 images equally"),
        ("grid.objective=[{name: supcon, training: {workers: 5}}]", "supcon.training.workers", "a divisor of batch"),
        ("early_stopping={grace: 0.1}", "early_stopping.grace", "choose from grace_period, reduction_factor"),
        ("early_stopping={reduction_factor: 1}", "early_stopping.reduction_factor", "greater than 1"),
        ("name=a/b", "name", "letters, digits"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(override: str, key: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        load(override)
    message = str(caught.value)
    assert message.startswith(f"{DEMO}: ")
    assert key in message
    assert fix in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["epochs", "=3", "training..epochs=3", "training.epochs.fast=1", "name=[a"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(InputError, match="--set "):
        load(override)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        config.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    for text, expected in (("a: [", "not valid YAML at line"), ("", "holds no settings"), ("- a", "holds no settings")):
        broken.write_text(text)
        with pytest.raises(InputError, match=expected):
            config.load(broken)
    broken.write_text("name: x\n")
    with pytest.raises(InputError, match="dataset: is missing"):
        config.load(broken)
