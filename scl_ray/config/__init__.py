"""What a sweep, a trial and an evaluation are; grid expansion; identity.

A sweep is a YAML file. Any axis of its grid may be a list; the grid expands to trials, and a trial's identity is a hash
of everything that decides its checkpoint and of nothing else.
"""

from scl_ray.config.evaluation import Cell, Evaluation
from scl_ray.config.reading import load
from scl_ray.config.refusals import sentence
from scl_ray.config.settings import InputError, Name, Settings, digest
from scl_ray.config.sweep import EarlyStopping, EvaluationSlot, Grid, Resources, Slot, Sweep
from scl_ray.config.trial import DatasetConfig, MetricLearning, Objective, Training, Trial, UserObjective

__all__ = [
    "Cell",
    "DatasetConfig",
    "EarlyStopping",
    "Evaluation",
    "EvaluationSlot",
    "Grid",
    "InputError",
    "MetricLearning",
    "Name",
    "Objective",
    "Resources",
    "Settings",
    "Slot",
    "Sweep",
    "Training",
    "Trial",
    "UserObjective",
    "digest",
    "load",
    "sentence",
]
