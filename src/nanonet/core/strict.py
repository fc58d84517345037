"""Frozen dataclasses from nested tables, strictly, and tables from ``--set key=value``.

Unknown keys, wrong types and values out of range are refused with the full key in the message.
"""

import dataclasses
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean

T = TypeVar("T")


def setting(default: Any, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Return a dataclass field with a default and an inclusive range."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Make a dataclass from a mapping, strictly.

    Raises:
        ConfigError: unknown key, missing key, wrong type, value out of range; names the full key.
    """
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            hint = did_you_mean(key, fields)
            known = ", ".join(fields)
            raise ConfigError(f"unknown key '{prefix}{key}'{hint}; known: {known}")
    made: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in values:
            made[name] = _convert(values[name], hints[name], prefix + name)
            _check_range(made[name], spec, prefix + name)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"key '{prefix}{name}' is missing")
    return cls(**made)


def _check_range(value: Any, spec: "dataclasses.Field[Any]", key: str) -> None:
    if isinstance(value, str):
        return  # one of the words that stand for a number
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"key '{key}' is {value}, but must be a finite number")
    low, high = spec.metadata.get("minimum"), spec.metadata.get("maximum")
    if low is not None and value < low:
        raise ConfigError(f"key '{key}' is {value}, but must be at least {low}")
    if high is not None and value > high:
        raise ConfigError(f"key '{key}' is {value}, but must be at most {high}")


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Return ``value`` checked against the type ``hint`` (ints pass for floats)."""
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"key '{key}' must be a table, not {value!r}")
        return build(hint, value, key)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), key)
    if origin is Literal:
        if value not in get_args(hint):
            hint_text = did_you_mean(str(value), [str(a) for a in get_args(hint)])
            raise ConfigError(
                f"key '{key}' is {value!r}{hint_text}, but must be one of "
                + ", ".join(repr(a) for a in get_args(hint))
            )
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"key '{key}' must be a table, not {value!r}")
        inner = get_args(hint)[1]
        return {k: _convert(v, inner, f"{key}.{k}") for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"key '{key}' must be a list, not {value!r}")
        return [_convert(v, get_args(hint)[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"key '{key}' must be {hint.__name__}, not {value!r}")
    return value


def _convert_union(value: Any, options: tuple[Any, ...], key: str) -> Any:
    for option in options:
        try:
            return _convert(value, option, key)
        except ConfigError:
            continue
    names = " or ".join(
        " or ".join(map(repr, get_args(o)))
        if get_origin(o) is Literal
        else getattr(o, "__name__", str(o))
        for o in options
    )
    raise ConfigError(f"key '{key}' must be {names}, not {value!r}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, table by table."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["training.steps=50", ...]`` into nested tables.

    A value is read as TOML (``0.1``, ``true``, ``[[1, 3]]``), and as plain text where it is not.

    Raises:
        ConfigError: an assignment has no ``=`` or an empty key.
    """
    out: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(
                f"--set {assignment!r}: write it as key=value, as in training.steps=50"
            )
        try:
            read = tomllib.loads(f"v = {text}")
            value = read["v"] if len(read) == 1 else text
        except tomllib.TOMLDecodeError:
            value = text
        table: dict[str, Any] = {parts[-1]: value}
        for part in reversed(parts[:-1]):
            table = {part: table}
        out = merge(out, table)
    return out


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested plain tables, ready for TOML or JSON."""
    return dataclasses.asdict(config)
