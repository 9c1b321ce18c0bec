"""`disa train`: the training of a model's family."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..runtime.distributed import print_main
from ..runtime.extras import extra
from ..runtime.files import BUNDLED, check_folder
from ..training.checkpoint import LAST
from ..training.harmon import load_training_config, run_training
from .evaluate import add_words, get_family
from .families import FLOWAR, MAR, XAR
from .flags import HelpFormatter, Parser, add_device_flag

FAMILIES = {"mar": MAR, "flowar": FLOWAR, "xar": XAR}
CONFIGS = "configs/examples"  # of Harmon's training, in the package


def add_flags(parser: ArgumentParser) -> None:
    parser.description = (
        "Train a model, as the families' main_*.py and Harmon's scripts/train.py do. `disa train MODEL --help` shows "
        "the flags of the model's family. Runs alone or under torchrun (torchrun -m disa train …)."
    )
    add_words(parser, "; of Harmon, one with a config in the package, or a config's file")


def main(args: Namespace) -> None:
    """Train a model."""
    if (config := get_config(args.model)) is not None:
        train_harmon([config, *args.flags], prog=f"disa train {args.model}")
    else:
        get_family(args.model, FAMILIES, "train").main(["--model", args.model, *args.flags])


def get_config(model: str) -> str | None:
    """Find the config of a model of Harmon, or take a config's file; None for other models.

    Raises:
        ValueError: none comes with the package.
    """
    if model.endswith(".py"):
        return model
    if not model.startswith("harmon"):
        return None
    config = f"{CONFIGS}/{model.replace('.', '_')}.py"
    if not (BUNDLED / config).is_file():
        there = ", ".join(sorted(path.stem for path in (BUNDLED / CONFIGS).glob("*.py")))
        raise ValueError(f"no config of {model!r} comes with the package (only {there}); give a config's file")
    return config


def get_harmon_parser(prog: str | None = None) -> Parser:
    """Build the parser of Harmon's training."""
    with extra("harmon"):
        from mmengine.config import DictAction

    class Options(DictAction):  # type: ignore[misc]  # mmengine is not typed
        def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
            if wrong := next((one for one in values if "=" not in one), None):
                parser.error(f"--cfg-options has {wrong!r}; name=value is needed, such as training.lr=1e-5")
            super().__call__(parser, namespace, values, option_string)

    description = "Train or fine-tune Harmon on text to image and image to text."
    parser = Parser(prog=prog, description=description, formatter_class=HelpFormatter)
    parser.add_argument("config", help="a file of configs/examples/, or one like them")
    text = "where checkpoints and the log go; by default work_dirs/ and the config's name"
    parser.add_argument("--work-dir", help=text)
    parser.add_argument("--resume", help="checkpoint to go on from; a run in the same --work-dir goes on by itself")
    parser.add_argument("--seed", type=int, help="of everything; by default the config's, or 1")
    text = "config values to replace, such as training.lr=1e-5"
    parser.add_argument("--cfg-options", nargs="+", action=Options, help=text)
    add_device_flag(parser)
    launchers, text = ("none", "pytorch"), "without effect: torchrun is noticed"
    parser.add_argument("--launcher", default="none", choices=launchers, help=text)
    text = "without effect: the launcher sets it"
    parser.add_argument("--local_rank", "--local-rank", default=0, type=int, help=text)
    parser.add_argument("--deepspeed", help="without effect: `accelerate launch` shards, see README.md")
    return parser


def train_harmon(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train Harmon as flags say."""
    args = get_harmon_parser(prog).parse_args(argv)
    config = load_training_config(args.config, args.cfg_options, args.seed)
    output = Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)
    check_folder(output, "--work-dir")
    run_training(config, output, resume=args.resume, device=args.device)
    print_main(f"done; weights are in {output / LAST}")
