"""Text and token ids, as Harmon's language model was taught to read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
DRAW = "Generate an image: {}"
DRAW_ANYTHING = "Generate an image."  # the unconditional prompt of guidance
IMAGE = "<image>"  # stands in a prompt for one visual feature
END = "<|im_end|>"


class TextTokenizer:
    """A transformers tokenizer, and the prompts of both tasks.

    Args:
        tokenizer: of the Qwen2 kind: it knows `<|im_start|>` and `<|im_end|>`.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        self.tokenizer = tokenizer
        self.image_token: int = tokenizer.convert_tokens_to_ids(IMAGE)
        self.end_token: int = tokenizer.convert_tokens_to_ids(END)

    @classmethod
    def load(cls, source: str | Path) -> TextTokenizer:
        """The tokenizer in a tokenizer.json, in a folder, or published under a name on the Hugging Face hub, which is fetched once.

        Raises:
            OSError: it is none of these.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        if Path(source).suffix == ".json":
            return cls(PreTrainedTokenizerFast(tokenizer_file=str(source)))
        try:
            return cls(AutoTokenizer.from_pretrained(str(source)))
        except (OSError, ValueError) as error:
            raise OSError(
                f"the text tokenizer {source} is no folder here and could not be fetched ({str(error).splitlines()[0]})"
            ) from error

    def __len__(self) -> int:
        return len(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added; what looks like a special token in it is plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def turn(self, *parts: str | list[int]) -> list[int]:
        """The template's ids around what the user says: text, or ids."""
        before, after = (self.tokenizer.encode(text, add_special_tokens=False) for text in TEMPLATE.split("{}"))
        return [*before, *(one for part in parts for one in (self.ids(part) if isinstance(part, str) else part)), *after]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def pad(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of token ids padded on the right, by default with the end token: ids int64 [N, T], and 1 where one is no padding [N, T]."""
        length = max(map(len, rows))
        fill = self.end_token if fill is None else fill
        ids = torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return ids, mask

    def drawing_prompts(self, prompts: Sequence[str], *, guided: bool, cfg_prompt: str = DRAW_ANYTHING) -> tuple[Tensor, Tensor]:
        """What `Harmon.generate` takes for B descriptions: ids and mask [B, T], or [2B, T] with `cfg_prompt` as the second half.

        Raises:
            ValueError: a prompt is empty.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty; say what to draw")
        rows = [DRAW.format(prompt.strip()) for prompt in prompts]
        return self.pad([self.turn(text) for text in rows + ([cfg_prompt] * len(rows) if guided else [])])

    def question(self, prompt: str, image_tokens: int) -> list[int]:
        """Token ids of a question on an image that takes `image_tokens` positions; where the prompt itself names it, it is passed over.

        Raises:
            ValueError: the prompt is empty.
        """
        prompt = prompt.replace(IMAGE, "").strip()
        if not prompt:
            raise ValueError("the prompt is empty; ask something")
        return self.turn([self.image_token] * image_tokens, "\n" + prompt)
