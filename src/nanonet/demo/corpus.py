"""Real English text that every machine has: the docstrings of Python's standard library.

The demo needs text that is not invented, needs no download and has a known answer. The docstrings
of the running interpreter are that: a few thousand short texts, each filed under the area of the
module that it comes from. `AREAS` is the answer key; it follows the chapters of the Python Library
Reference, and leaves out modules that a developer could file under two areas (``os``, ``signal``).
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanonet.core.errors import ConfigError, DataError

# fmt: off
AREAS: dict[str, tuple[str, ...]] = {
    "networking": (
        "ftplib", "http", "http.client", "http.cookiejar", "http.cookies", "http.server", "imaplib",
        "ipaddress", "nntplib", "poplib", "select", "selectors", "smtplib", "socket",
        "socketserver", "ssl", "telnetlib", "urllib.error", "urllib.parse", "urllib.request",
        "urllib.response", "urllib.robotparser", "webbrowser", "wsgiref.handlers",
        "wsgiref.headers", "wsgiref.simple_server", "wsgiref.util", "wsgiref.validate",
        "xmlrpc.client", "xmlrpc.server",
    ),
    "files and archives": (
        "bz2", "compression.zstd", "fcntl", "filecmp", "fileinput", "fnmatch", "glob", "gzip", "io",
        "linecache", "lzma", "os.path", "pathlib", "shutil", "stat", "tarfile", "tempfile",
        "zipfile", "zlib",
    ),
    "text and formats": (
        "base64", "binascii", "codecs", "configparser", "csv", "difflib", "email", "email.charset",
        "email.encoders", "email.errors", "email.feedparser", "email.generator", "email.header",
        "email.headerregistry", "email.iterators", "email.message", "email.parser", "email.policy",
        "email.utils", "gettext", "html", "html.parser", "json", "locale", "plistlib",
        "pprint", "quopri", "re", "shlex", "string", "stringprep", "struct", "textwrap", "tomllib",
        "unicodedata", "xml.dom", "xml.dom.minidom", "xml.dom.pulldom", "xml.etree.ElementTree",
        "xml.parsers.expat", "xml.sax", "xml.sax.handler", "xml.sax.saxutils", "xml.sax.xmlreader",
    ),
    "numbers and time": (
        "calendar", "cmath", "datetime", "decimal", "fractions", "math", "numbers", "random",
        "statistics", "time", "zoneinfo",
    ),
    "concurrency": (
        "asyncio", "concurrent.futures", "concurrent.interpreters", "contextvars",
        "multiprocessing", "multiprocessing.connection", "multiprocessing.managers",
        "multiprocessing.pool", "multiprocessing.shared_memory", "multiprocessing.sharedctypes",
        "queue", "sched", "subprocess", "threading",
    ),
    "code and testing": (
        "annotationlib", "ast", "bdb", "cProfile", "code", "codeop", "compileall", "dis", "doctest",
        "faulthandler", "importlib", "importlib.abc", "importlib.machinery", "importlib.metadata",
        "importlib.util", "inspect", "keyword", "modulefinder", "opcode", "pdb", "pickletools",
        "pkgutil", "profile", "pstats", "py_compile", "pyclbr", "pydoc", "runpy", "symtable",
        "tabnanny", "timeit", "tokenize", "trace", "traceback", "tracemalloc", "typing",
        "unittest", "unittest.mock",
    ),
}
# fmt: on

# Where a module's names live when it is not the module itself, a submodule or a `_name` twin.
_TWINS: dict[str, tuple[str, ...]] = {
    "importlib.machinery": ("_frozen_importlib", "_frozen_importlib_external"),
    "importlib.util": ("_frozen_importlib", "_frozen_importlib_external"),
    "os.path": ("posixpath", "ntpath", "genericpath"),
    "threading": ("_thread",),
    "xml.parsers.expat": ("pyexpat",),
}
# Left out: torch and pytest replace the first two, so the corpus would depend on what was imported
# before; the third is another name of a base of `socket.socket`.
_SKIPPED = {"inspect.getfile", "threading.excepthook", "socket.SocketType"}
_MIN_WORDS = 4
# Not English: signatures of dataclasses, the grammar in `ast`, fields of named tuples.
_GENERATED = re.compile(r"([\w.]+ = )?[\w.]+(\([^()]*\))?( \| .*)?|Alias for field number \d+")
_SPARE_PER_AREA = 10


@dataclass(frozen=True)
class Docstring:
    """One text, the area it is filed under and the qualified name that it documents."""

    text: str
    area: str
    name: str


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a corpus, each in a seeded random order."""

    labeled: list[Docstring]
    unlabeled: list[Docstring]
    test: list[Docstring]


def read_corpus() -> list[Docstring]:
    """Read the docstrings of every module in `AREAS`, sorted by module and qualified name.

    A text that occurs twice in one area is kept once; one that occurs in two areas is dropped.
    """
    homes = sorted((module, area) for area, modules in AREAS.items() for module in modules)
    found: dict[str, Docstring] = {}
    areas_of: dict[str, set[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules and names warn when touched
        for module, area in homes:
            for name, text in sorted(_read_module(module)):
                key = text.casefold()
                found.setdefault(key, Docstring(text, area, name))
                areas_of.setdefault(key, set()).add(area)
    return [doc for key, doc in found.items() if len(areas_of[key]) == 1]


def split_corpus(
    corpus: Sequence[Docstring],
    *,
    labeled_per_area: int = 10,
    test_fraction: float = 0.4,
    seed: int = 0,
) -> Split:
    """Split each area into test, labeled and unlabeled texts.

    The test texts are drawn first, so one seed gives the same test set for any number of labels.
    """
    if labeled_per_area < 1 or not 0 < test_fraction < 1:
        raise ConfigError("labeled_per_area must be at least 1 and test_fraction between 0 and 1")
    rng = np.random.default_rng(seed)
    labeled: list[Docstring] = []
    unlabeled: list[Docstring] = []
    test: list[Docstring] = []
    for area in AREAS:
        rows = [doc for doc in corpus if doc.area == area]
        if len(rows) < labeled_per_area + _SPARE_PER_AREA:
            raise DataError(
                f"area '{area}' has {len(rows)} texts, needs {labeled_per_area + _SPARE_PER_AREA}; "
                "ask for fewer labels (python -OO removes most docstrings)"
            )
        rows = _shuffled(rows, rng)
        cut = min(round(test_fraction * len(rows)), len(rows) - labeled_per_area)
        test += rows[:cut]
        labeled += rows[cut : cut + labeled_per_area]
        unlabeled += rows[cut + labeled_per_area :]
    test = _shuffled(test, rng)
    return Split(_shuffled(labeled, rng), _shuffled(unlabeled, rng), test)


def _shuffled(rows: list[Docstring], rng: np.random.Generator) -> list[Docstring]:
    return [rows[i] for i in rng.permutation(len(rows))]


def _read_module(name: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, text) for a module and all it defines; nothing if it is missing."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    yield from _own_text(name, module)
    for key in getattr(module, "__all__", None) or sorted(vars(module)):
        yield from _read_object(f"{name}.{key}", getattr(module, key, None), name)


def _read_object(name: str, obj: object, module: str) -> Iterator[tuple[str, str]]:
    """Yield the text of a public class, function or property, and of the members of a class."""
    if name.rpartition(".")[2].startswith("_") or not _has_own_text(obj):
        return
    if name in _SKIPPED or not _belongs(obj, module):
        return
    yield from _own_text(name, obj)
    if isinstance(obj, type):
        for key, member in _members(obj, module).items():
            if not isinstance(member, type):  # often another class of the module, under a new name
                yield from _read_object(f"{name}.{key}", member, module)


def _has_own_text(obj: object) -> bool:
    return isinstance(obj, type | property) or inspect.isroutine(obj)


def _belongs(obj: object, module: str) -> bool:
    """Whether an object is defined in a module, in a submodule or in a C twin such as `_socket`."""
    home = getattr(obj, "__module__", None)
    if home is None:  # properties and methods written in C do not say; their class has been checked
        return True
    public = re.sub(r"(^|\.)_", r"\1", home)
    return public == module or public.startswith(f"{module}.") or home in _TWINS.get(module, ())


def _members(cls: type, module: str) -> dict[str, object]:
    """Return what a class and those of its bases that belong to the same module define."""
    members: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if _belongs(base, module):
            members.update(vars(base))
    return members


def _own_text(name: str, obj: object) -> Iterator[tuple[str, str]]:
    """Yield the docstring of an object as one line, unless it is generated or very short."""
    doc = getattr(obj, "__doc__", None)
    if not isinstance(doc, str) or doc == type(obj).__doc__:
        return
    text = " ".join(inspect.cleandoc(doc).split())
    if len(text.split()) >= _MIN_WORDS and not _GENERATED.fullmatch(text):
        yield name, text
