"""Train or fine-tune Harmon on text to image and image to text. See README.md in the folder above."""

from __future__ import annotations

import argparse
from pathlib import Path

from disa.commands.exit import run
from disa.commands.flags import HelpFormatter, Parser, add_device_flag
from disa.runtime.distributed import print_main
from disa.runtime.extras import extra
from disa.runtime.files import check_folder
from disa.training.checkpoint import LAST
from disa.training.harmon import load_training_config, run_training


def get_parser() -> argparse.ArgumentParser:
    with extra("harmon"):
        from mmengine.config import DictAction

    class Options(DictAction):  # type: ignore[misc]  # mmengine is not typed
        def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
            if wrong := next((one for one in values if "=" not in one), None):
                parser.error(f"--cfg-options has {wrong!r}; name=value is needed, such as training.lr=1e-5")
            super().__call__(parser, namespace, values, option_string)

    parser = Parser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
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


def main() -> None:
    args = get_parser().parse_args()
    config = load_training_config(args.config, args.cfg_options, args.seed)
    output = Path(args.work_dir or Path("work_dirs") / Path(args.config).stem)
    check_folder(output, "--work-dir")
    run_training(config, output, resume=args.resume, device=args.device)
    print_main(f"done; weights are in {output / LAST}")


if __name__ == "__main__":
    run(main)
