"""Configs as plain data: nested for YAML, flat for comparing key by key."""

from typing import Any

from pydantic import BaseModel

from src.config.section import VOLATILE
from src.config.yaml_text import DEPTH
from src.errors import UserError, shortened


def dump_config(config: BaseModel, *, volatile: bool = True) -> dict:
    """The resolved config as plain data for YAML, if asked without the keys that only set speed."""
    left_out = () if volatile else volatile_keys(config)
    keys = [key for key in type(config).model_fields if key not in left_out]
    return {key: plain(getattr(config, key), volatile=volatile) for key in keys}


def volatile_keys(section: BaseModel) -> list[str]:
    """Keys of a section that only set the speed."""
    fields = type(section).model_fields.items()
    return [key for key, field in fields if field.json_schema_extra == VOLATILE]


def plain(value: Any, *, volatile: bool = True) -> Any:
    """Sections anywhere inside `value` as plain data, tuples as lists."""
    if isinstance(value, BaseModel):
        return dump_config(value, volatile=volatile)
    if isinstance(value, (tuple, list)):
        return [plain(v, volatile=volatile) for v in value]
    if isinstance(value, dict):
        return {k: plain(v, volatile=volatile) for k, v in value.items()}
    return value


def defaults_like(value: Any) -> Any:
    """The same structure with every key of every section at its default: what a run meant that was
    made before a key existed."""
    if isinstance(value, BaseModel):
        tree = {}
        for key, field in type(value).model_fields.items():
            if field.is_required():  # of an item, which a run from before did not have
                continue
            now = getattr(value, key)
            inside = defaults_like(now)
            default = plain(field.get_default(call_default_factory=True))
            tree[key] = inside if _has_sections(now) else default
        return tree
    if isinstance(value, (tuple, list)):
        return [defaults_like(v) for v in value]
    if isinstance(value, dict):
        return {k: defaults_like(v) for k, v in value.items() if _has_sections(v)}
    return value


def _has_sections(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_sections(v) for v in value.values())
    if isinstance(value, (tuple, list)):
        return any(_has_sections(v) for v in value)
    return isinstance(value, BaseModel)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} → {"train.lr": 1}, for comparing configs key by key."""
    if isinstance(tree, dict) and tree:
        pairs = tree.items()
    elif isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        pairs = enumerate(tree)
    else:
        return {prefix: tree}
    flat = {}
    for key, value in pairs:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def put(tree: dict, key: str, value: Any, origin: str) -> None:
    """Set `train.lr` or `stage2.0.epochs`, in place; sections on the way that are missing are made.

    Errors: UserError that begins with `origin`, for an item that a list has not.
    """
    *parents, last = key.split(".")
    node: Any = tree
    if len(parents) >= DEPTH:
        raise UserError(f"{origin}: a key of {len(parents) + 1} parts; the longest have 5")
    for part in parents:
        index = _index(node, part, origin)
        if isinstance(node, dict) and isinstance(node.get(index), str):
            node[index] = {"name": node[index]}  # `network: bbn`, and now one of its keys
        if isinstance(node, dict) and not isinstance(node.get(index), dict | list):
            node[index] = {}
        node = node[index]
    node[_index(node, last, origin)] = value


def _index(node: Any, part: str, origin: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UserError(f"{origin}: {shortened(repr(node))} has no {part!r} inside it")
    places = [str(i) for i in range(len(node))]  # int() also takes "²", "٣" and "00"
    if part not in places:
        has = f"items 0 … {len(node) - 1}" if node else "no items"
        raise UserError(f"{origin}: the list has {has}, not {shortened(part)!r}")
    return int(part)
