"""Label sets: which classes there are, how they are called and which index each one has.

A label is a whole number or a word. Files give the same label in several spellings (a CSV file
knows no numbers, a test file may hold names where the training file holds numbers), so a
``LabelSet`` accepts a class by its value or by its name, and refuses label columns that leave a
doubt about which class is meant.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import DataError
from nanonet.core.registry import did_you_mean

Label = int | str

# At most 18 digits: what is longer is an identifier, and Python refuses to parse very long ones.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_LINE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_MOST_SHOWN = 10


def spot(source: str, number: int) -> str:
    """Return ``"line 7"`` for a text file and ``"row 7"`` for any other source, for messages."""
    name = source.lower().removesuffix(".gz").removesuffix(".zst")
    is_text_file = name == "stdin" or name.endswith(_LINE_SUFFIXES)
    return f"{'line' if is_text_file else 'row'} {number}"


def place(source: str, number: int) -> str:
    """Return where a row is, for messages: ``"train.csv, line 7"`` or ``"train.parquet, row 7"``.

    ``number`` counts lines in a text file and rows elsewhere, both from 1.
    """
    return f"{source}, {spot(source, number)}"


def quoted(value: object) -> str:
    """Return ``value`` as Python writes it, cut to about 60 characters, always on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:45] + "..." + text[-12:]


def listing(items: Sequence[str]) -> str:
    """Return at most ten items joined by commas, then ``... and N more``."""
    shown = ", ".join(items[:_MOST_SHOWN])
    more = len(items) - _MOST_SHOWN
    return f"{shown}, ... and {more} more" if more > 0 else shown


def _is_number(label: Label) -> bool:
    return isinstance(label, int) or _WHOLE_NUMBER.fullmatch(label) is not None


def as_numbers(labels: Sequence[Label]) -> list[Label]:
    """Return the labels with text such as ``"0"`` turned into numbers, if that fits all of them.

    One word in the column leaves it as it is, and so does a code such as ``"007"``, which would
    not survive the way through a number.
    """
    distinct = set(labels)
    if not all(_is_number(label) and str(int(label)) == str(label) for label in distinct):
        return list(labels)
    return [int(label) for label in labels]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a task; class ``i`` has the value ``values[i]`` and the name ``names[i]``.

    Raises ``DataError`` when the two differ in length, when a value or a name occurs twice, or
    when the name of one class is the value of another.
    """

    values: tuple[Label, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        problem = _problem(self.values, self.names)
        if problem:
            raise DataError(f"unusable label set: {problem}")

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def from_columns(
        cls,
        labels: Sequence[Label],
        names: Sequence[str] | None,
        source: str,
        rows: Sequence[int] | None = None,
    ) -> "LabelSet":
        """Collect the classes of a label column, sorted (numbers by value, words by alphabet).

        ``names`` holds the name of each row's label; without it a class is named by its value.
        ``rows`` holds each row's number in ``source`` for messages (default: 1, 2, ...).

        Raises ``DataError`` when there are no labels, when numbers and words are mixed, when one
        label has two names or two labels share one, or when a name is another label's value.
        """
        if not labels:
            raise DataError(f"{source} has no labels; add labelled rows")
        if names is not None and len(names) != len(labels):
            raise DataError(
                f"{source} has {len(labels)} labels but {len(names)} label names; "
                "give one name per label"
            )
        numbers = rows if rows is not None else range(1, len(labels) + 1)
        _refuse_mixed(labels, source, numbers)
        clean = as_numbers(labels)
        values = tuple(sorted(set(clean), key=lambda v: (v, "") if isinstance(v, int) else (0, v)))
        if names is None:
            return cls(values, tuple(str(value) for value in values))
        name_of = _one_name_each(clean, names, source, numbers)
        chosen = tuple(name_of[value] for value in values)
        problem = _problem(values, chosen)
        if problem:
            raise DataError(f"{source}: {problem}; rename one of them")
        return cls(values, chosen)

    def encode(
        self,
        labels: Sequence[Label],
        source: str,
        rows: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> NDArray[np.int64]:
        """Return the class index of each label, shape (n,).

        A label may be given as value, as name, or as the text of a number. ``rows`` holds each
        label's row in ``source`` for messages (default: 1, 2, ...), ``names`` each label's name if
        the source gives one. Raises ``DataError`` at the first unknown label, and where a name is
        that of another class.
        """
        index = {str(value): i for i, value in enumerate(self.values)}
        index |= {name: i for i, name in enumerate(self.names)}
        ids = np.empty(len(labels), dtype=np.int64)
        for position, label in enumerate(labels):
            # True would otherwise pass for the name "True"; a reader never lets it come this far.
            found = None if isinstance(label, bool) else index.get(str(label).strip())
            if found is None:
                row = rows[position] if rows is not None else position + 1
                known = list(dict.fromkeys([*self.names, *map(str, self.values)]))
                raise DataError(
                    f"{place(source, row)}: unknown label {quoted(label)}"
                    f"{did_you_mean(str(label), known)}; the known labels are "
                    f"{listing(self._described())}"
                )
            ids[position] = found
            named = None if names is None else index.get(names[position])
            if names is not None and named not in (None, found):
                row = rows[position] if rows is not None else position + 1
                raise DataError(
                    f"{place(source, row)}: label {quoted(label)} is named"
                    f" {quoted(names[position])} here, but training called it"
                    f" {quoted(self.names[found])}; give it one name"
                )
        return ids

    def _described(self) -> list[str]:
        """Return each class as ``0 (World)``, or only its name where that says it all."""
        return [
            quoted(value) if name == str(value) else f"{quoted(value)} ({name})"
            for value, name in zip(self.values, self.names, strict=True)
        ]

    def to_json(self) -> dict[str, list[Label]]:
        """Return the set as plain lists: ``{"values": [...], "names": [...]}``."""
        return {"values": list(self.values), "names": list(self.names)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "LabelSet":
        """Return the set that ``to_json`` described; raise ``DataError`` where that is damaged."""
        values, names = data.get("values"), data.get("names")
        if not isinstance(values, list) or not isinstance(names, list):
            raise DataError("damaged label set: it needs the lists 'values' and 'names'")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise DataError(f"damaged label set: {quoted(value)} is no number and no word")
        for name in names:
            if not isinstance(name, str):
                raise DataError(f"damaged label set: the name {quoted(name)} is not text")
        return cls(tuple(values), tuple(names))


def _problem(values: Sequence[Label], names: Sequence[str]) -> str | None:
    """Return what makes these classes ambiguous, or None."""
    if len(values) != len(names):
        return f"{len(values)} values but {len(names)} names"
    owner: dict[str, int] = {}
    for i, value in enumerate(values):
        if str(value) in owner:
            return f"the label {quoted(value)} occurs twice"
        owner[str(value)] = i
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        return f"the name {quoted(twice)} stands for two labels"
    for i, name in enumerate(names):
        if owner.get(name, i) != i:
            return f"{quoted(name)} is the name of label {quoted(values[i])} and itself a label"
    return None


def _refuse_mixed(labels: Sequence[Label], source: str, rows: Sequence[int]) -> None:
    """Raise ``DataError`` when the column holds numbers and words, or something else."""
    first: dict[bool, int] = {}
    for i, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DataError(
                f"{place(source, rows[i])}: the label {quoted(label)} must be a whole number or "
                "a word; convert it"
            )
        first.setdefault(_is_number(label), i)
    if len(first) == 2:
        number, word = first[True], first[False]
        raise DataError(
            f"{source} mixes numbers and words as labels: {quoted(labels[number])} "
            f"({spot(source, rows[number])}) and {quoted(labels[word])} "
            f"({spot(source, rows[word])}); use one kind"
        )


def _one_name_each(
    labels: Sequence[Label], names: Sequence[str], source: str, rows: Sequence[int]
) -> dict[Label, str]:
    """Return the name of each label; raise ``DataError`` unless they match one to one."""
    by_label: dict[Label, int] = {}
    by_name: dict[str, int] = {}
    for i, (label, name) in enumerate(zip(labels, names, strict=True)):
        j = by_label.setdefault(label, i)
        if names[j] != name:
            raise DataError(
                f"{place(source, rows[i])}: label {quoted(label)} is named {quoted(name)} here "
                f"but {quoted(names[j])} in {spot(source, rows[j])}; give it one name"
            )
        j = by_name.setdefault(name, i)
        if labels[j] != label:
            raise DataError(
                f"{place(source, rows[i])}: the name {quoted(name)} stands for label "
                f"{quoted(label)} here but for {quoted(labels[j])} in {spot(source, rows[j])}; "
                "give each label a name of its own"
            )
    return {label: names[i] for label, i in by_label.items()}
