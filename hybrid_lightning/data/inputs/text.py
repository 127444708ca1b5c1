"""Texts: cells of the manifest → numbers of words, or of a tokenizer's pieces of words."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, Value, cell_error, collate_padded
from hybrid_lightning.data.inputs.checks import check_column, check_count
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.libraries import cache_hint

_WORD = re.compile(r"\w+")
_RESERVED = 2
"""0 is padding, 1 an unknown word."""


class TextInput(Input):
    """A text per sample, from a cell of the manifest.

    With ``tokenizer: words``, the words of the training rows, in small letters, are numbered from 2; a batch has
    ``values`` `(B, T)` int64 and ``mask`` `(B, T)` bool, False in the padding, as ``SequenceTransformer`` takes them.
    0 is padding, 1 a word that was not seen. Otherwise a batch has ``input_ids`` and ``attention_mask`` `(B, T)` int64,
    as models of transformers take them. Both are padded at the end to the longest text of the batch.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        text: Name of the column of texts.
        tokenizer: ``words``; or the name or folder of a tokenizer of transformers (extra ``transformers``), which has
            to be on this machine.
        length: Most words, or pieces; the rest of a text is cut off. None keeps all, with a tokenizer those that its
            model can take.
        vocabulary: Most words that get a number of their own, the most frequent ones; of ``words`` only.

    Raises:
        ConfigError: If an option is impossible; later, if the tokenizer is not there.
    """

    def __init__(
        self, key: str, where: str, text: Any, tokenizer: Any = "words", length: Any = None, vocabulary: Any = 10000
    ) -> None:
        super().__init__(key, [check_column(text, f"{where}.text")], where)
        self.tokenizer = check_column(tokenizer, f"{where}.tokenizer")
        self.length = None if length is None else check_count(length, f"{where}.length")
        self.vocabulary = check_count(vocabulary, f"{where}.vocabulary")
        self._encoder: Any = None
        """The tokenizer of transformers."""

    @property
    def _by_words(self) -> bool:
        return self.tokenizer == "words"

    def fit(self, table: Table, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
        """``words``: those with a number, the most frequent first, equally frequent ones in the order of letters."""
        if not self._by_words:
            return {}
        import pyarrow

        table.require(self.columns[0], self.where)
        texts = table.texts(self.columns[0])
        counts = Counter(word for text in texts.take(pyarrow.array(rows)).to_pylist() for word in words_of(text or ""))
        if not counts:
            raise ConfigError(f"{self.where}: no training row has a word in column {self.columns[0]!r}.")
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {"words": [word for word, _ in frequent[: self.vocabulary]]}

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``vocabulary``: how many numbers there are, of ``words`` only."""
        return {"vocabulary": len(self.statistics["words"]) + _RESERVED} if self._by_words else {}

    def bind(self, table: Table, folder: str) -> None:
        """Takes the column, and loads the tokenizer from this machine."""
        table.require(self.columns[0], self.where)
        self._texts = table.texts(self.columns[0])
        if self._by_words:
            self._numbers = {word: number for number, word in enumerate(self.statistics["words"], _RESERVED)}
        elif self._encoder is None:
            self._encoder = self._load(local=True)

    def prefetch(self) -> list[str]:
        """Fetches the tokenizer into the cache of this machine."""
        if self._by_words:
            return []
        self._encoder = self._load(local=False)
        return [f"{self.key}: the tokenizer {self.tokenizer!r} is here"]

    def _load(self, local: bool) -> Any:
        try:
            import transformers
        except ModuleNotFoundError:
            raise ConfigError(
                f"{self.where}.tokenizer: {self.tokenizer!r} needs transformers; install it with "
                f"pip install 'hybrid_lightning[transformers]', or write 'tokenizer: words'."
            ) from None
        try:
            return transformers.AutoTokenizer.from_pretrained(
                self.tokenizer, local_files_only=local, trust_remote_code=False
            )
        except Exception as error:  # depends on the kind of tokenizer
            raise ConfigError(
                f"{self.where}.tokenizer: {self.tokenizer!r} is neither 'words' nor a tokenizer that can be loaded "
                f"from this machine: {str(error)[:300]}{cache_hint('transformers.AutoModel')}"
            ) from error

    def read(self, row: int, training: bool) -> Value:
        """``values`` and ``mask``, or ``input_ids`` and ``attention_mask``, each `(T,)`."""
        text = str(self._texts[row].as_py())
        if self._by_words:
            numbers = [self._numbers.get(word, 1) for word in words_of(text)][: self.length]
            values = torch.tensor(numbers, dtype=torch.long)
            return {"values": values, "mask": torch.ones(len(values), dtype=torch.bool)}
        try:
            encoded = self._encoder(text, truncation=True, max_length=self._most(), return_attention_mask=True)
        except Exception as error:  # depends on the kind of tokenizer
            raise cell_error(self.where, row, text[:40], error) from error
        return {name: torch.tensor(encoded[name], dtype=torch.long) for name in ("input_ids", "attention_mask")}

    def _most(self) -> int:
        """Most pieces; where its model has no limit, a tokenizer states an enormous number."""
        limit = min(int(self._encoder.model_max_length), 2**20)
        return limit if self.length is None else min(limit, self.length)

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> dict[str, Tensor]:
        """Pads to the longest text of the batch; with the tokenizer's own piece for it, or 0."""
        fill = {} if self._by_words else {"input_ids": self._encoder.pad_token_id or 0}
        return collate_padded(values, placeholder, fill)

    def peek(self, row: int) -> tuple[int, ...]:
        """The number of letters."""
        return (len(str(self._texts[row].as_py())),)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters: runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())
