"""Names to things: one small registry, with "did you mean" for unknown names."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from nanonet.core.errors import ConfigError

T = TypeVar("T")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, ignoring case, or ``""``."""
    by_folded = {item.casefold(): item for item in known}
    close = difflib.get_close_matches(word.casefold(), list(by_folded), n=1)
    return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""


class Registry(Generic[T]):
    """Maps names to entries of one kind, for instance objectives or PEFT methods."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        Raises:
            ValueError: the name is taken (a programming error).
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            ConfigError: no such entry; the message lists what there is.
        """
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            hint = did_you_mean(name, self._entries)
            raise ConfigError(f"unknown {self.kind} '{name}'{hint}; there are: {known}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
