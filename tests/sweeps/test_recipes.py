"""The sweeps that come with the project: their grids, and the paper's recipes, column by column."""

from pathlib import Path

import pytest

from scl_ray import config

SWEEPS = Path(__file__).parents[2] / "sweeps"
SGD = {"optimizer": "sgd", "momentum": 0.9}
CONTRASTIVE = {**SGD, "epochs": 500, "batch_size": 256, "weight_decay": 1e-4, "warmup_epochs": 10}
LARGE = {"epochs": 160, "batch_size": 512, "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup_epochs": 5}
# Arrighi et al., arXiv 2604.22540: backbone, the objective's own parameters, training.
PAPER = {
    ("paper_cifar10", "cross_entropy"): ("resnet18", {"label_smoothing": 0.0}, {
        **SGD, "epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "warmup_epochs": 0,
        "augmentation": "crop_flip"}),
    ("paper_cifar10", "supcon"): ("resnet18", {"temperature": 0.07}, {
        **CONTRASTIVE, "learning_rate": 0.5, "augmentation": "contrastive"}),
    ("paper_cifar10", "triplet"): ("resnet18", {"margin": 0.3, "mining": "semi_hard"}, {
        **CONTRASTIVE, "learning_rate": 0.1, "augmentation": "crop_flip"}),
    ("paper_imagenet_s50", "cross_entropy"): ("resnet50", {"label_smoothing": 0.1}, {
        **LARGE, "optimizer": "adamw", "augmentation": "resized_crop_flip"}),
    ("paper_imagenet_s50", "supcon"): ("resnet50", {"temperature": 0.07}, {
        **LARGE, "optimizer": "radam", "augmentation": "contrastive_blur"}),
    ("paper_imagenet_s50", "triplet"): ("resnet50", {"margin": 0.3, "mining": "semi_hard"}, {
        **LARGE, "optimizer": "radam", "augmentation": "resized_crop_flip"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ["paper_cifar10", "paper_imagenet_s50"])
def test_the_papers_recipes_are_its_columns(name):
    sweep = config.load(SWEEPS / f"{name}.yaml")
    trials = sweep.trials()
    assert len(trials) == 15
    for objective in ("cross_entropy", "supcon", "triplet"):
        backbone, parameters, training = PAPER[name, objective]
        own = [trial for trial in trials if trial.objective.name == objective]
        assert sorted(trial.seed for trial in own) == [0, 1, 2, 3, 4]
        for trial in own:
            assert trial.backbone == backbone
            assert trial.objective.parameters_by_name == parameters
            assert training.items() <= trial.training.model_dump().items()
    assert sweep.evaluation.protocol == ["published", "corrected"]


def test_the_full_grid():
    sweep = config.load(SWEEPS / "full_grid.yaml")
    assert sweep.dataset.name == "cifar10"
    assert sweep.grid.backbone == ["resnet18", "resnet50"]
    assert sweep.grid.seed == [0, 1, 2, 3, 4]
    for name in ("supcon", "simclr"):
        temperatures = [objective.temperature for objective in sweep.grid.objective if objective.name == name]
        assert sorted(temperatures) == [0.05, 0.07, 0.1, 0.2, 0.5, 1.0]
    assert {o.name for o in sweep.grid.objective} == {"cross_entropy", "supcon", "triplet", "simclr"}
    assert len(sweep.trials()) == 14 * 2 * 5
