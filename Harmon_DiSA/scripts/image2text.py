"""Answer a question on an image. See README.md in the folder above."""

from __future__ import annotations

import argparse

from disa.commands.exit import run
from disa.commands.flags import value
from disa.commands.harmon import check, load, parse, parser
from disa.data.transforms import open_image
from disa.generation.generators import image_shape
from disa.pipeline import answer_question
from disa.runtime.start import start


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    value(result, "--image", "data/view.jpg", "file of the image; README.md says how it is fitted to --image_size")
    value(result, "--prompt", "Describe the image in detail.", "the question")
    value(result, "--max_new_tokens", 512, "longest answer")
    return result


def main() -> None:
    args, config = parse(get_parser())
    image = open_image(args.image)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens is {args.max_new_tokens}; it must be at least 1")
    check(args, config, question=args.prompt)
    device = start(args.device)
    model = load(args, config, device)
    assert model.text is not None  # `load` attached it, or failed
    from transformers import TextStreamer

    streamer = TextStreamer(model.text.tokenizer, skip_prompt=True, skip_special_tokens=True)
    shape = image_shape(args.image_size, model.vae.stride)
    answer_question(model, image, shape, args.prompt, args.max_new_tokens, streamer, called="prompt")


if __name__ == "__main__":
    run(main)
