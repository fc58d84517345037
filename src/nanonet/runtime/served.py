"""A bundle as the server sees it: what it is asked over HTTP, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from nanonet.core.bundle import Manifest
from nanonet.runtime.requests import Asked

Item = TypeVar("Item")  # what the model gets of a row
A = TypeVar("A", bound=Asked)


class ErrorAnswer(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Served(ABC, Generic[Item, A]):
    """A bundle as the server sees it.

    Attributes:
        about: what it does, as a sentence.
        page: the part of the page at / that is its own.
        asked: a request's body.
        answers: what it gets.
    """

    about: ClassVar[str]
    page: ClassVar[str]
    asked: type[A]
    answers: ClassVar[type[BaseModel]]
    manifest: Manifest

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return what clients should know of it."""

    @abstractmethod
    def items(self, asked: A) -> list[Item]:
        """Return what the model is to answer, a part for each row.

        Raises:
            RequestError: it cannot.
        """

    @abstractmethod
    def warm_up(self) -> list[Item]:
        """Return items of usual length to measure the model with."""

    @abstractmethod
    def work(self, item: Item) -> float:
        """Return about how much work an item is, in tokens, without tokenizing it."""

    @abstractmethod
    def run(self, items: list[Item]) -> Iterable[Any]:
        """Return what the model finds, one for each item; called in the worker thread."""

    @abstractmethod
    def answer(self, found: Any, asked: A) -> dict[str, Any]:
        """Return the answer to one row."""
