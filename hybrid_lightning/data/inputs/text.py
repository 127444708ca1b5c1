"""Texts: cells of the manifest → numbers of words, or of a tokenizer's pieces of words."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info  # Lightning's own, without the seconds of importing it
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, Value, check_count, check_name, collate_padded
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.errors import ConfigError, at, reason
from hybrid_lightning.files import exists, holds_files_alone
from hybrid_lightning.importing import cache_hint, import_extra

_UNKNOWN = 1
_FIRST_WORD = 2  # 0 is padding, 1 an unknown word
_USUAL = 0.95  # share of the training texts that are kept whole by default
_NO_LIMIT = 2**20  # pieces
_LOOKED_AT = 32  # texts that are cut into pieces to find the longest
_MOST_USUAL = 512  # words, beyond which attention over a batch takes much memory


class TextInput(Input):
    """A text per sample, from a cell of the manifest.

    With ``tokenizer: words``, the words of the training rows, in small letters, are numbered from 2; a batch has
    ``values`` `(B, T)` int64 and ``mask`` `(B, T)` bool, False in the padding, as ``SequenceTransformer`` takes them.
    0 is padding, 1 a word that was not seen. Otherwise a batch has ``input_ids`` and ``attention_mask`` `(B, T)` int64,
    as models of transformers take them. Both are padded at the end to the longest text of the batch.

    Args:
        text: Name of the column of texts.
        tokenizer: ``words``; or the name or folder of a tokenizer of transformers (extra ``transformers``), which has
            to be on this machine.
        length: Most words, or pieces; the rest of a text is cut off. None keeps as many words as 19 of 20 training
            texts have at most (at most 512), and says so if any has more; with a tokenizer, as many pieces as its model
            can take.
        vocabulary: Most words that get a number of their own, the most frequent ones; of ``words`` only.
    """

    def __init__(
        self, key: str, text: Any, tokenizer: Any = "words", length: Any = None, vocabulary: Any = 10000
    ) -> None:
        super().__init__(key, [check_name(text, "text")])
        self.tokenizer = check_name(tokenizer, "tokenizer")
        self.length = None if length is None else check_count(length, "length")
        self.vocabulary = check_count(vocabulary, "vocabulary")
        self._by_words = self.tokenizer == "words"
        self._encoder: Any = None  # the tokenizer of transformers

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """``words``: those with a number, the most frequent first, equally frequent ones by letters; ``length``."""
        if not self._by_words:
            return {}
        column = self.columns[0]
        counts: Counter[str] = Counter()
        lengths = []
        for text in table.texts(column).take(rows).drop_null().to_pylist():
            words = words_of(text)
            counts.update(words)
            lengths.append(len(words))
        if not counts:
            raise ConfigError(f"no training row has a word in column {column!r}.", self.where)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        return {"words": frequent[: self.vocabulary], "length": self._usual_length(np.array(lengths))}

    def _usual_length(self, lengths: Array) -> int:
        """Words that texts are cut to unless the option says otherwise; reported if a training text has more."""
        usual = max(1, int(np.quantile(lengths, _USUAL, method="higher")))
        usual = min(usual, _MOST_USUAL)
        longer = lengths > usual
        if self.length is None and longer.any():
            rank_zero_info(
                f"{self.where}: texts are read up to word {usual}; {longer.mean():.1%} of the training texts have "
                f"more, the longest {lengths.max()}. Write 'length: {lengths.max()}' to keep them whole"
            )
        return usual

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``most_steps``, the longest that a text may be; of ``words`` also ``vocabulary``, the count of numbers."""
        if self._by_words:
            # the statistics of an earlier version's checkpoint hold no length
            longest = self.length or self.statistics.get("length")
            vocabulary = _FIRST_WORD + len(self.statistics["words"])
            return {"vocabulary": vocabulary} | ({"most_steps": longest} if longest else {})
        if self._encoder is None:
            return {}
        most = self._most_pieces()
        return {"most_steps": most if most < _NO_LIMIT else self._longest()}

    def _most_pieces(self) -> int:
        """The length to which the tokenizer cuts; one whose model has no limit states an enormous number."""
        stated = min(int(self._encoder.model_max_length), _NO_LIMIT)
        return stated if self.length is None else min(stated, self.length)

    def _longest(self) -> int:
        """Pieces of the longest text, found among those with the most letters."""
        import pyarrow.compute as compute

        letters = compute.fill_null(compute.utf8_length(self._texts), 0).to_numpy()
        rows = np.argsort(-letters, kind="stable")[:_LOOKED_AT]
        texts = self._texts.take(rows).drop_null().to_pylist()
        return max((len(self._encoder(text)["input_ids"]) for text in texts), default=0)

    def bind(self, table: Table) -> None:
        """Takes the column, and loads the tokenizer from this machine."""
        self._texts = table.texts(self.columns[0])
        if self._by_words:
            self._numbers = {word: number for number, word in enumerate(self.statistics["words"], _FIRST_WORD)}
        elif self._encoder is None:
            self._encoder = self._load_tokenizer(local=True)

    def prefetch(self) -> list[str]:
        """Fetches the tokenizer into the cache of this machine."""
        if self._by_words:
            return []
        self._encoder = self._load_tokenizer(local=False)
        return [f"{self.key}: the tokenizer {self.tokenizer!r} is here"]

    def _load_tokenizer(self, local: bool) -> Any:
        with at(f"{self.where}.tokenizer"):
            if exists(self.tokenizer) and not (Path(self.tokenizer).is_dir() and holds_files_alone(self.tokenizer)):
                raise ConfigError(f"{self.tokenizer!r} is not a folder of files alone.")
            transformers = import_extra("transformers", "transformers", f"{self.tokenizer!r}, unlike 'words',")
            try:
                return transformers.AutoTokenizer.from_pretrained(
                    self.tokenizer, local_files_only=local, trust_remote_code=False
                )
            except Exception as error:  # which exception depends on the kind of tokenizer
                raise ConfigError(
                    f"{self.tokenizer!r} is neither 'words' nor a tokenizer that can be loaded from this machine: "
                    f"{reason(error)}{cache_hint('transformers')}"
                ) from error

    def read(self, row: int, training: bool) -> Value:
        """``values`` and ``mask``, or ``input_ids`` and ``attention_mask``, each `(T,)`."""
        text = str(self._texts[row].as_py())
        if self._by_words:
            numbers = [self._numbers.get(word, _UNKNOWN) for word in words_of(text)]
            # the statistics of an earlier version's checkpoint hold no length
            most = self.length or self.statistics.get("length")
            values = torch.tensor(numbers[:most], dtype=torch.long)
            return {"values": values, "mask": torch.ones(len(values), dtype=torch.bool)}
        length = self._most_pieces()
        try:
            encoded = self._encoder(text, truncation=True, max_length=length, return_attention_mask=True)
        except Exception as error:  # which exception depends on the kind of tokenizer
            raise self.cell_error(row, text[:40], error) from error
        names = ("input_ids", "attention_mask")  # what models of all kinds take
        return {name: torch.tensor(encoded[name], dtype=torch.long) for name in names}

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> dict[str, Tensor]:
        """Pads to the longest text of the batch; with the tokenizer's own piece for it, or 0."""
        if self._by_words:
            return collate_padded(values, placeholder, {})
        return collate_padded(values, placeholder, {"input_ids": self._encoder.pad_token_id or 0})


def words_of(text: str) -> list[str]:
    """The words of a text in small letters: runs of letters with their marks, digits and underscores."""
    composed = unicodedata.normalize("NFC", text.lower())
    return _word_pattern().findall(composed)


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """A letter, digit or underscore, and what follows of these and of marks, such as vowel signs."""
    every = map(chr, range(sys.maxunicode + 1))
    marks = [letter for letter in every if unicodedata.category(letter)[0] == "M"]
    joiners = "\u200c\u200d"  # which stand within words of Persian and of Indian scripts
    return re.compile(rf"\w[\w{''.join(marks)}{joiners}]*")
