"""Answer a question on an image. See README.md in the folder above."""

from __future__ import annotations

import argparse

import torch

from disa.commands.exit import run
from disa.commands.flags import value
from disa.commands.harmon import check, load, parse, parser
from disa.data.transforms import open_image
from disa.generation.generators import image_shape
from disa.pipeline import fit_image
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
    check(args, config)
    device = start(args.device)
    model = load(args, config, device)
    assert model.text is not None  # `load` attached it, or failed
    stride = model.vae.stride
    rows, columns = image_shape(args.image_size, stride)
    question = model.text.question(args.prompt, model.image_tokens((rows, columns)))
    room = model.llm.config.max_position_embeddings - len(question)
    if room < 1:
        taken = f"the prompt and the image take {len(question)} tokens, {1 - room} too many"
        least = len(model.text.question("a", model.image_tokens((rows, columns))))
        fits = least < model.llm.config.max_position_embeddings
        raise ValueError(f"{taken}; {'shorten the prompt, or ' * fits}take a smaller image")
    pixels = fit_image(image, rows * stride, columns * stride, model.vae)
    with torch.no_grad():
        latents = model.vae.encode(pixels.to(device, model.llm.dtype))
    from transformers import TextStreamer

    model.answer(
        latents,
        torch.tensor([question], device=device),
        model.text.image_token,
        max_new_tokens=min(args.max_new_tokens, room),
        do_sample=False,
        eos_token_id=model.text.end_token,
        pad_token_id=model.text.end_token,
        streamer=TextStreamer(model.text.tokenizer, skip_prompt=True, skip_special_tokens=True),
    )


if __name__ == "__main__":
    run(main)
