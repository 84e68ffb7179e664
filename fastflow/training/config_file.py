"""A configuration as a YAML file: read with one-line errors that name the key, changed by settings, written."""

import difflib
import os
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from fastflow.training.config import Config

_UNIONS = ("model", "trunk", "head")  # pydantic puts the kind that was chosen into the path of what is wrong inside


def load_config(path: str | os.PathLike, settings: list[str] | None = None) -> Config:
    """Reads a YAML file and applies `settings` ("optimizer.lr=1e-3", values in YAML) over it.

    Raises FileNotFoundError or ValueError: one line that names the file, the key, what came and what was expected.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {_flat(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of sections (data, model, steps, ...), got {type(tree).__name__}")
    for setting in settings or []:
        _apply(tree, setting)
    return parse_config(tree, str(path))


def parse_config(tree: dict, source: str) -> Config:
    """The checked Config of a nested dict; errors begin with `source`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {_describe(error)}") from None


def dump_config(config: Config) -> str:
    """The YAML text that load_config reads back to the same Config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _apply(tree: dict, setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {setting}: expected key=value, for instance optimizer.lr=1e-3")
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"--set {setting}: {section} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--set {setting}: not a YAML value: {_flat(error)}") from error


def _describe(error: ValidationError) -> str:
    first, *others = error.errors()
    path = first["loc"]
    location = [part for i, part in enumerate(path) if i == 0 or path[i - 1] not in _UNIONS]
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        text = f"unknown key {key}{_suggest(location)}"
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "union_tag_not_found":
        text = f"{key}.kind is missing"
    elif first["type"] == "union_tag_invalid":
        text = f"{key}.kind is {first['ctx']['tag']!r}, expected {first['ctx']['expected_tags']}"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(others)} more)" if others else "")


def _suggest(location: list) -> str:
    keys = _keys(Config)
    wrong = ".".join(map(str, location))
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong section
        near = [key for key in keys if key.rsplit(".", 1)[-1] == location[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for kind in _members(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys


def _members(annotation: Any) -> tuple:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
