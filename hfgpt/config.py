"""Dataclasses from YAML: every key known, every type checked, one message a user can act on."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from .shipped import find_file


T = TypeVar("T")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key_node.value}` is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; recipes/... means hfgpt's own where it is not in the current folder.

    Raises:
        ValueError: The file is missing, is not YAML, or holds something else.
    """
    path = find_file(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ValueError(f"Cannot read the config file {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got a {type(values).__name__}.")
    return values


def unknown_key(key: str, known: typing.Iterable[str], where: str) -> ValueError:
    """The error for a key nobody reads, naming the nearest known one."""
    known = sorted(known)
    near = get_close_matches(str(key), known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}."
    return ValueError(f"Unknown key `{key}` in {where}: {hint}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build dataclass `cls` from `values`, nested dataclasses included.

    Args:
        cls: A dataclass.
        values: Its fields by name.
        where: Where the values come from, for messages.

    Raises:
        ValueError: An unknown key, a missing one, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise unknown_key(key, fields, where)
        checked[key] = coerce(value, hints[key], f"`{key}` in {where}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in checked:
            raise ValueError(f"`{name}` is missing in {where}: {field.metadata.get('help', 'it has no default.')}")
    try:
        return cls(**checked)
    except ValueError as error:
        raise ValueError(f"{error} (in {where})") from None


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """`value` as `annotation`, converting only what loses nothing (an int for a float, "6e-4" for a float).

    Raises:
        ValueError: Anything else.
    """
    origin = typing.get_origin(annotation)
    if annotation is Any or (value is None and annotation is type(None)):
        return value
    if origin in (Union, types.UnionType):
        options = typing.get_args(annotation)
        if value is None and type(None) in options:
            return None
        # An exact type wins over a conversion: "1" stays text in `str | int`.
        for option in options:
            if isinstance(option, type) and type(value) is option:
                return value
        for option in options:
            if option is not type(None):
                try:
                    return coerce(value, option, where)
                except ValueError as error:
                    if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                        raise
                    failure = error
        raise failure if len(options) == 2 and type(None) in options else _wrong_type(value, annotation, where)
    if origin is typing.Literal:
        if value not in typing.get_args(annotation):
            allowed = ", ".join(map(repr, typing.get_args(annotation)))
            raise ValueError(f"{where} must be one of {allowed}, got {value!r}.")
        return value
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(value, annotation, where)
        item = (typing.get_args(annotation) or (Any,))[0]
        return origin(coerce(part, item, f"{where}, item {index + 1}") for index, part in enumerate(value))
    if origin is dict or annotation is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(value, annotation, where)
        if annotation is dict:
            return dict(value)
        key_type, item = typing.get_args(annotation)
        return {
            _coerce_key(key, key_type, f"A key of {where}"): coerce(part, item, f"{where}, `{key}`")
            for key, part in value.items()
        }
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, Mapping):
            return from_mapping(annotation, value, where)
        if isinstance(value, annotation):
            return value
        raise _wrong_type(value, annotation, where)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        try:
            return annotation(value)
        except ValueError:
            raise ValueError(
                f"{where} must be one of {', '.join(repr(e.value) for e in annotation)}, got {value!r}."
            ) from None
    return _coerce_scalar(value, annotation, where)


def _coerce_key(key: Any, annotation: Any, where: str) -> Any:
    # YAML reads the keys of `{0: " no", 1: " yes"}` as numbers.
    return str(key) if annotation is str and type(key) is int else coerce(key, annotation, where)


def _coerce_scalar(value: Any, annotation: Any, where: str) -> Any:
    if annotation is bool:
        if isinstance(value, bool):
            return value
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 6e-4 as text
            try:
                return float(value)
            except ValueError:
                pass
    elif not isinstance(annotation, type) or isinstance(value, annotation):
        return value
    raise _wrong_type(value, annotation, where)


def _wrong_type(value: Any, annotation: Any, where: str) -> ValueError:
    wanted = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    message = f"{where} must be {wanted}, got {type(value).__name__} {value!r}."
    if annotation is str and isinstance(value, bool):
        message += " YAML reads a plain yes, no, on, off, true or false so: put it in quotes."
    return ValueError(message)
