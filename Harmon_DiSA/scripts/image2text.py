"""Answer a question on an image. See README.md in the folder above."""

from __future__ import annotations

import argparse

import torch

from disa.cli import run
from disa.distributed import resolve_device
from disa.prompted import fit_image, image_shape, load, parse, parser
from disa.transforms import open_image


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__.splitlines()[0])
    result.add_argument("--image", default="data/view.jpg", help="file of the image; README.md says how it is fitted to --image_size")
    result.add_argument("--prompt", default="Describe the image in detail.", help="the question")
    result.add_argument("--max_new_tokens", default=512, type=int, help="longest answer")
    return result


def main() -> None:
    from transformers import TextStreamer

    args, config = parse(get_parser())
    image = open_image(args.image)
    if args.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {args.max_new_tokens}; it must be at least 1")
    device = resolve_device(args.device)
    model = load(args, config, device)
    rows, columns = image_shape(args.image_size, model.vae.stride)
    question = model.text.question(args.prompt, model.image_tokens((rows, columns)))
    room = model.llm.config.max_position_embeddings - len(question)
    if room < 1:
        raise ValueError(
            f"the prompt and the image take {len(question)} tokens, {1 - room} too many; shorten the prompt, or take a smaller image"
        )
    pixels = fit_image(image, rows * model.vae.stride, columns * model.vae.stride, model)
    with torch.no_grad():
        latents = model.vae.encode(pixels.to(device, model.llm.dtype))
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
