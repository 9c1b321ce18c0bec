"""Train the byte-pair tokenizer of harmon_fashion on its grammar: `python -m benchmarks.making_of.byte_pairs`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from disa.commands.flags import HelpFormatter
from disa.data.captions import FRAMES, QUESTIONS, describe
from disa.data.fashion import FASHION_CLASSES
from disa.data.text import END, IMAGE, TEMPLATE, TEXT_TO_IMAGE, UNCONDITIONAL_PROMPT
from disa.runtime.files import atomic_write

VOCABULARY = 512


def sentences() -> Iterator[str]:
    """Generate every prompt and answer of the grammar."""
    for label, light, width, frame in itertools.product(
        range(len(FASHION_CLASSES)), ("", "dark", "bright"), ("", "narrow", "wide"), FRAMES
    ):
        caption = describe(label, [word for word in (light, width) if word], frame)
        yield TEMPLATE.format(TEXT_TO_IMAGE.format(caption)) + caption
    for question in (*QUESTIONS, UNCONDITIONAL_PROMPT):
        yield TEMPLATE.format(question)


def main(argv: Sequence[str] | None = None) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("harmon_fashion_tokenizer.json"), help="where the tokenizer goes"
    )
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
    from disa.commands.exit import run

    run(main)
