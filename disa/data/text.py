"""Text and token ids, in the format that Harmon's language model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..runtime.extras import extra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TEXT_TO_IMAGE = "Generate an image: {}"
UNCONDITIONAL_PROMPT = "Generate an image."  # the unconditional prompt of guidance
IMAGE = "<image>"  # stands in a prompt for one visual feature
END = "<|im_end|>"


class TextTokenizer:
    """A transformers tokenizer of the Qwen2 kind, which knows `<|im_start|>`, and the prompts of both tasks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        self.tokenizer = tokenizer
        self.image_token: int = tokenizer.convert_tokens_to_ids(IMAGE)  # type: ignore[assignment]  # of one token
        self.end_token: int = tokenizer.convert_tokens_to_ids(END)  # type: ignore[assignment]

    @classmethod
    def load(cls, source: str | Path) -> TextTokenizer:
        """Load a tokenizer.json, a folder, or a name on the Hugging Face hub, fetched once; raise OSError if none."""
        with extra("harmon"):
            from transformers import AutoTokenizer, PreTrainedTokenizerFast
        if Path(source).suffix == ".json":
            try:
                return cls(PreTrainedTokenizerFast(tokenizer_file=str(source)))  # type: ignore[no-untyped-call]
            except Exception as error:  # tokenizers raises nothing narrower
                reason = str(error).splitlines()[0] if Path(source).is_file() else "there is no such file"
                raise OSError(f"{source} cannot be read as a text tokenizer ({reason})") from error
        try:
            return cls(AutoTokenizer.from_pretrained(str(source)))
        except (OSError, ValueError) as error:
            raise OSError(
                f"the text tokenizer {source} is no folder here and could not be fetched ({str(error).splitlines()[0]})"
            ) from error

    def __len__(self) -> int:
        return len(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Encode `text`, with nothing added; what looks like a special token in it is plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: list[int] | Tensor) -> str:
        """Inverse of `ids`, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def chat(self, *parts: str | list[int]) -> list[int]:
        """Apply the chat template to one message of the user, given in parts: text, or token ids."""
        before, after = (self.tokenizer.encode(text, add_special_tokens=False) for text in TEMPLATE.split("{}"))
        message = [token for part in parts for token in (self.ids(part) if isinstance(part, str) else part)]
        return [*before, *message, *after]

    def pad(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Pad token ids on the right, by default with the end token: ids and a mask (0 where padded), int64 [N, T]."""
        ids = [torch.tensor(row) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        return pad_sequence(ids, batch_first=True, padding_value=self.end_token if fill is None else fill), mask

    def text_to_image_prompts(
        self, prompts: Sequence[str], *, guided: bool, cfg_prompt: str = UNCONDITIONAL_PROMPT
    ) -> tuple[Tensor, Tensor]:
        """Encode B descriptions for `Harmon.generate`: ids and mask [B, T], guided [2B, T] with `cfg_prompt` last.

        Raises ValueError if a prompt is empty.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty; say what to draw")
        texts = [TEXT_TO_IMAGE.format(prompt.strip()) for prompt in prompts] + [cfg_prompt] * (len(prompts) * guided)
        return self.pad([self.chat(text) for text in texts])

    def question(self, prompt: str, image_tokens: int) -> list[int]:
        """Encode a question (ValueError if empty) on an image of `image_tokens` positions; `<image>`s are ignored."""
        if not (prompt := prompt.replace(IMAGE, "").strip()):
            raise ValueError("the prompt is empty; ask something")
        return self.chat([self.image_token] * image_tokens, "\n" + prompt)
