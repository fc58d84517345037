"""The tasks that there are, by name."""

from collections.abc import Callable
from typing import Any

from nanonet.core.config import Config
from nanonet.tasks.base import Task
from nanonet.training.documents import Summarization
from nanonet.training.inputs import Classification
from nanonet.training.multilabel import Multilabel


def make_task(config: Config) -> Task[Any]:
    """Return the task that a configuration asks for.

    Raises:
        ConfigError: its settings contradict.
    """
    kinds: dict[str, Callable[[Config], Task[Any]]] = {
        "classification": Classification,
        "multilabel": Multilabel,
        "summarization": Summarization,
    }
    return kinds[config.task](config)
