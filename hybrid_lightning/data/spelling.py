"""Spellings: which texts of a table name one thing."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

_Array = np.ndarray[Any, Any]

_WHOLE = r"^([+-]?\d+)\.0*$"
_CODE_NAME = re.compile("(.*_)?(id|code|zip|zipcode|zip_code|plz|postcode|postal_code|icd|sku|ean|isbn)(_.*)?")
_PLAIN_NUMBER = re.compile(r"\+?(-?)0*(\d+)(?:(\.\d*?)0*)?")


def without_decimals(texts: "pyarrow.Array") -> "pyarrow.Array":
    """Texts in which whole numbers have no decimals: pandas writes 7.0 for 7 in a column with a gap."""
    import pyarrow.compute as compute

    return compute.replace_substring_regex(texts, _WHOLE, r"\1")


def key_of(text: str) -> str:
    """What is the same for all spellings of a thing: without letter case, blanks, and zeros that change no number."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    number = _PLAIN_NUMBER.fullmatch(plain)
    if not number:
        return plain
    sign, whole, decimals = number.groups(default="")
    return f"{sign}{whole}{decimals.rstrip('.')}"


def alike(texts: Iterable[str]) -> list[list[str]]:
    """The texts that are spellings of one thing, sorted; only where there are several."""
    spellings: dict[str, set[str]] = {}
    for text in texts:
        spellings.setdefault(key_of(text), set()).add(text)
    return [sorted(same) for same in spellings.values() if len(same) > 1]


def positions(texts: "pyarrow.Array", names: Sequence[str]) -> _Array:
    """The place of each text in a list of names, int64; -1 for others and for empty cells.

    A text that is none of the names stands for that without its decimals (7.0 for 7), or else for the one name of which
    it is another spelling, if there is just one.
    """
    import pyarrow
    import pyarrow.compute as compute

    found = compute.index_in(texts, value_set=pyarrow.array(names, type=texts.type))
    places: _Array = np.array(found.fill_null(-1), dtype=np.int64)
    others = np.flatnonzero((places < 0) & np.asarray(texts.is_valid(), dtype=bool))
    if not len(others):
        return places
    place_of_key: dict[str, int] = {}
    for place, name in enumerate(names):
        key = key_of(name)
        place_of_key[key] = -1 if key in place_of_key else place
    encoded = texts.take(pyarrow.array(others)).dictionary_encode()
    place_of_name = {name: place for place, name in enumerate(names)}
    distinct = []
    for text in without_decimals(encoded.dictionary).to_pylist():
        exact = place_of_name.get(text)
        distinct.append(place_of_key.get(key_of(text), -1) if exact is None else exact)
    places[others] = np.array(distinct, dtype=np.int64)[np.asarray(encoded.indices)]
    return places


def seem_codes(name: str, numbers: _Array) -> bool:
    """Whether the numbers `(rows,)` of a column, nan in gaps, may be codes, of which mean and size say nothing.

    Whole numbers are by the column's name; or if they are few, large and far apart, as 8001, 8032 and 9000.
    """
    known = numbers[~np.isnan(numbers)]
    distinct = np.unique(known)
    if len(distinct) <= 2 or not (distinct == np.floor(distinct)).all():
        return False
    # "zipCode" and "zip code" are one name
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", name).lower()
    is_few = len(distinct) * 5 <= len(known)
    is_gappy = distinct[-1] - distinct[0] > 10 * len(distinct)
    return bool(_CODE_NAME.fullmatch(words)) or bool(is_few and distinct[0] >= 1000 and is_gappy)
