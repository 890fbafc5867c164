"""Explains and scores classifiers that were trained elsewhere: no training, the same store, the same report.

    python sweeps/evaluate.py --checkpoint weights.safetensors --model torchvision.models:resnet18 \\
        --dataset image_folder:PATH --image-size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \\
        --methods grad_cam integrated_gradients --metrics pixel_flipping_auc ssim_continuity --out runs

The same command again continues: what is finished is not computed again. Another checkpoint under the same name stands
beside the earlier ones. Ctrl-C stops within ten seconds, twice at once; `full_grid.py --cancel --name NAME` stops it
from elsewhere. Exit code 0: all done; 1: something failed and is named in the summary; 2: the input was refused; 130:
stopped by Ctrl-C or --cancel; 143: by SIGTERM.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from scl_ray import command, interruption, plugins
from scl_ray.config import InputError, sentence
from scl_ray.datasets import DATASETS, INFO
from scl_ray.given.config import Asked
from scl_ray.given.run import describe, run

# What this command shares with sweeps names settings by the configuration's keys, which are flags here.
_KEYS = re.compile(
    r"(?<![\w./-])(?:evaluation\.(images|protocol|methods|metrics)|dataset\.(name|root|image_size))(?!\w)"
)
_FLAGS = {"name": "--dataset", "root": "ROOT in --dataset NAME:ROOT", "image_size": "--image-size"}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A user's own `module:callable` may lie in the current folder.
    sys.path[:0] = [str(Path.cwd())]
    return command.run(partial(_run, options), _with_flags)


def _run(options: argparse.Namespace, console: Console) -> int:
    asked = _asked(options)
    if options.dry_run:
        describe(asked, options.out, console)
        return 0
    return run(asked, options.out, console)


def _asked(options: argparse.Namespace) -> Asked:
    """The command's options, checked as far as it takes no file. Raises InputError."""
    name, root = _dataset(options.dataset)
    if name == "image_folder" and root is None:
        raise InputError("--dataset image_folder: lacks its folder; give image_folder:PATH")
    if not options.mean or not options.std:
        raise InputError("--mean and --std: cannot be known from weights; give what the network was trained with, for "
                         "torchvision's on ImageNet --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225")  # fmt: skip
    if len(options.mean) != len(options.std) or len(options.mean) not in (1, 3):
        raise InputError("--mean and --std: give three values each, or one each for a network of grey images")
    if not all(0 <= value <= 1 for value in options.mean) or not all(0 < value <= 1 for value in options.std):
        raise InputError("--mean and --std: are of pixels in [0, 1], those of --std above 0; divide values for pixels "
                         "of 0 to 255 by 255")  # fmt: skip
    if options.image_size is None and name not in INFO:
        raise InputError(f"--image-size: cannot be known for {name}; give the side in pixels of the images that the "
                         "network was trained on, as --image-size 224")  # fmt: skip
    try:
        return Asked.model_validate({
            "name": options.name,
            "checkpoint": options.checkpoint,
            "label": options.label,
            "model": options.model,
            "layer": options.layer,
            "mean": options.mean,
            "std": options.std,
            "labels": options.labels,
            "dataset": {"name": name, "root": root, "image_size": options.image_size},
            "evaluation": {"images": options.images, "protocol": options.protocol, "methods": options.methods,
                           "metrics": options.metrics},
        })  # fmt: skip
    except ValidationError as error:
        message = sentence(error, Asked)
        raise InputError(message if _KEYS.match(message) else f"--{message}") from error


def _dataset(text: str) -> tuple[str, str | None]:
    """``NAME``, ``NAME:ROOT``, ``module:callable`` or ``module:callable:ROOT``, taken apart."""
    parts = text.split(":")
    names = 2 if parts[0] not in DATASETS and plugins.is_plugin(":".join(parts[:2])) else 1
    return ":".join(parts[:names]), ":".join(parts[names:]) or None


def _with_flags(message: str) -> str:
    """*message* with this command's flags for the configuration's keys; nothing is downloaded here."""
    message = message.replace(", or dataset.download to true", "")
    return _KEYS.sub(lambda key: f"--{key[1]}" if key[1] else _FLAGS[key[2]], message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Explain and score classifiers that were trained elsewhere; the same command again continues."
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE",
        help="weights: .safetensors, or .pt and .pth that hold weights only; several stand side by side")  # fmt: skip
    add("--model", required=True, metavar="MODULE:CALLABLE", help="builds the network when called without arguments")
    add("--label", nargs="+", default=[], metavar="NAME",
        help="what tables and figures call each checkpoint; those of one label count as seeds of one recipe (default: "
             "the file's name)")  # fmt: skip
    add("--layer", metavar="NAME",
        help="the module that CAMs explain, as layer4.1 (default: the last block whose output feeds the global "
             "pooling)")  # fmt: skip
    add("--dataset", required=True, metavar="NAME[:ROOT]",
        help=f"image_folder:PATH (train/ and test/ with a folder per class, or the class folders directly: test images "
             f"alone), or one of {', '.join(INFO)}")  # fmt: skip
    add("--image-size", type=int, metavar="PIXELS", help="side of the images that the network was trained on")
    add("--mean", type=float, nargs="+", help="what was subtracted from pixels in [0, 1], per channel")
    add("--std", type=float, nargs="+", help="what they were divided by then")
    add("--labels", type=Path, metavar="FILE",
        help="JSON, YAML or text: each class to the number of the network's output, or the names of the outputs in "
             "their order (default: the classes sorted by name, where there are as many outputs)")  # fmt: skip
    add("--images", type=int, metavar="N", help="how many test images (default: all)")
    add("--methods", nargs="+", required=True, metavar="SPEC", help="as grad_cam or integrated_gradients[steps=20]")
    add("--metrics", nargs="+", required=True, metavar="SPEC",
        help="as pixel_flipping_auc or ssim_continuity[noise=0.1]")  # fmt: skip
    add("--protocol", nargs="+", default=["corrected"], choices=["corrected", "published"],
        help="corrected divides the scores by a temperature fitted on the dataset's validation images")  # fmt: skip
    add("--out", default="runs", help="folder or fsspec URI for results (default: %(default)s)")
    add("--name", default="evaluation", help="what the comparison is called (default: %(default)s)")
    add("--dry-run", action="store_true", help="say what would run and how long; write nothing")
    return parser


if __name__ == "__main__":
    interruption.end(main())
