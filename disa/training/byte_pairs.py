"""Train the small byte-pair tokenizer of harmon_fashion on its captions' grammar: `python -m disa.training.byte_pairs`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import atomic_write
from ..flags import HelpFormatter
from ..text import DRAW, DRAW_ANYTHING, END, IMAGE, TEMPLATE
from .captions import FRAMES, QUESTIONS, describe
from .data import FASHION_CLASSES

VOCABULARY = 512


def sentences() -> Iterator[str]:
    """Everything that the grammar can say."""
    for label, light, width, frame in itertools.product(
        range(len(FASHION_CLASSES)), ("", "dark", "bright"), ("", "narrow", "wide"), FRAMES
    ):
        caption = describe(label, [word for word in (light, width) if word], frame)
        yield TEMPLATE.format(DRAW.format(caption)) + caption
    for question in (*QUESTIONS, DRAW_ANYTHING):
        yield TEMPLATE.format(question)


def main(argv: Sequence[str] | None = None) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("harmon_fashion_tokenizer.json"), help="where the tokenizer goes")
    args = parser.parse_args(argv)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    with atomic_write(args.out) as beside:
        tokenizer.save(str(beside))
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


if __name__ == "__main__":
    from ..cli import run

    run(main)
