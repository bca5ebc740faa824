"""Config dataclasses to JSON and back, without pickles.

A config is a frozen dataclass of numbers, strings, booleans, paths, tuples and further such dataclasses.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any


def config_to_json(config: Any) -> dict[str, Any]:
    """The config as JSON holds it: dataclasses become objects, tuples become lists.

    Args:
        config: a dataclass instance.

    Returns:
        Nested dictionaries, lists, numbers, strings, booleans and None.

    Raises:
        TypeError: a field holds something else.
    """
    return json.loads(json.dumps(dataclasses.asdict(config), default=_path_as_text))


def config_from_json(kind: type, data: Any, where: str = "config") -> Any:
    """The config that ``config_to_json`` wrote.

    Args:
        kind: the dataclass.
        data: what ``config_to_json`` returned.
        where: what an error calls ``data``.

    Returns:
        An instance of ``kind``.

    Raises:
        ValueError: a field is missing, unknown, or holds a value of another type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object with the fields of {kind.__name__}, got {data!r}")
    names = [field.name for field in dataclasses.fields(kind)]
    for name in data:
        if name not in names:
            raise ValueError(f"{where}: unknown field {name!r}; {kind.__name__} has {', '.join(names)}")
    for name in names:
        if name not in data:
            raise ValueError(f"{where}: field {name!r} of {kind.__name__} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], data[name], f"{where}.{name}") for name in names})


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _value(arguments[0], data, where)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _value(option, data, where)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if data in arguments:
            return data
    elif origin is tuple and isinstance(data, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        if len(arguments) == len(data):
            pairs = zip(arguments, data, strict=True)
            return tuple(
                _value(item_kind, item, f"{where}[{i}]") for i, (item_kind, item) in enumerate(pairs)
            )
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return config_from_json(kind, data, where)
    elif kind is Path and isinstance(data, str):
        return Path(data)
    elif kind is float and type(data) in (int, float):
        return float(data)
    elif kind in (int, str, bool, types.NoneType) and type(data) is kind:
        return data
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {data!r}")


def _path_as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"a config holds numbers, text, booleans, paths, tuples and dataclasses; got {type(value).__name__}"
    )
