"""Reading a config: YAML file + `--set key=value` → validated, frozen `Config`.

Unknown keys and wrong values become errors that say what was meant. Nothing here imports torch, so
that 04 and 06 start fast. `python -m src.config` writes `configs/folder_template.yaml`.
"""

import difflib
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from src.errors import UserError
from src.head_keys import head_key
from src.schema import Config


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and validate.

    Errors: UserError for a missing file, bad YAML, an unknown key (with the nearest right one), a
    wrong type or value (with what was expected).
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such config file{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected `key: value` pairs, found {type(tree).__name__}")
    for item in overrides:
        _override(tree, item)
    config = parse_config(tree, str(path))
    _check_search(config, str(path))
    return config


def parse_config(tree: dict, origin: str = "config") -> Config:
    """Validate a nested dictionary; `origin` is named in the errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
        raise UserError(f"{origin}: " + "\n".join(lines)) from None


def with_values(config: Config, values: dict[str, Any], origin: str) -> Config:
    """The config with other values, by key as in `--set`; `origin` is named in the errors."""
    tree = dump_config(config)
    for key, value in values.items():
        _put(tree, key, value, origin)
    return parse_config(tree, origin)


def _check_search(config: Config, origin: str) -> None:
    """Errors: UserError for a key of `search.keys` that is none, or a range beyond its own."""
    for key, span in config.search.keys.items():
        where = f"{origin}: search.keys {key}"
        if key.split(".")[0] not in ("model", "train"):
            right = [k for k in _all_keys() if k.startswith(("model.", "train."))]
            near = difflib.get_close_matches(key, right, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{where}: only keys of model and train decide how stage 1 ends, and those of "
                f"heads are for search.stage2.keys{hint}"
            )
        for value in span.ends:
            with_values(config, {key: value}, where)
    for key, span in (config.search.stage2.keys or {}).items():
        where = f"{origin}: search.stage2.keys {key}"
        place = head_key(config, key, where)
        for value in span.ends:
            with_values(config, {place: value}, where)


def dump_config(config: BaseModel, *, volatile: bool = True) -> dict:
    """The resolved config as plain data for YAML, if asked without the keys that only set speed."""
    out = {}
    for key, field in type(config).model_fields.items():
        if not volatile and (field.json_schema_extra or {}).get("volatile"):
            continue
        out[key] = plain(getattr(config, key), volatile=volatile)
    return out


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


def _override(tree: dict, item: str) -> None:
    """Set one `train.lr=0.1` or `stage2.0.epochs=5` in the tree."""
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError(f"--set {item}: expected key=value, for example train.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {item}: the value is not valid YAML: {error}") from error
    _put(tree, key, value, f"--set {item}")


def _put(tree: dict, key: str, value: Any, origin: str) -> None:
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        index = _index(node, part, origin)
        if isinstance(node, dict) and not isinstance(node.get(index), dict | list):
            node[index] = {}
        node = node[index]
    node[_index(node, last, origin)] = value


def _index(node: dict | list, part: str, origin: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"{origin}: the list has items 0 … {len(node) - 1}, not {part!r}")
    return int(part)


def _explain(error: dict) -> str:
    """One pydantic error in the words of the config file."""
    location = error["loc"]
    tags = {tag for m in _models_of(Config) for tag in _tags(m)}
    key = ".".join(str(p) for p in location if p not in tags)
    if error["type"] == "extra_forbidden":
        return f"unknown key `{key}`; {_nearest_key(location)}"
    if error["type"] == "value_error":
        return f"`{key}`: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    field = _field_at(location)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    options, found = [], error["input"]
    if error["type"] == "literal_error" and field is not None:
        options = [str(value) for value in _literals(field.annotation)]
    elif error["type"] == "union_tag_invalid":
        found = found.get(error["ctx"]["discriminator"].strip("'"))
        options = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
    near = difflib.get_close_matches(str(found), options, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"`{key}`: found {found!r}; {error['msg']}{hint}{meaning}"


def _nearest_key(location: tuple) -> str:
    unknown = str(location[-1])
    siblings = [key for s in _sections_at(location[:-1]) for key in s.model_fields]
    near = difflib.get_close_matches(unknown, siblings, 1, 0.5)
    near = near or [k for k in _all_keys() if k.rsplit(".", 1)[-1] == unknown]
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(siblings)}"


def _literals(annotation) -> list:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [v for a in get_args(annotation) for v in _literals(a)]


def _models(annotation) -> list[type[BaseModel]]:
    """The section classes mentioned anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models(a)]


def _models_of(section: type[BaseModel]) -> list[type[BaseModel]]:
    """The section and all sections below it."""
    below = [m for f in section.model_fields.values() for m in _models(f.annotation)]
    return [section] + [n for m in below for n in _models_of(m)]


def _tags(section: type[BaseModel]) -> list[str]:
    """What names a member of a union of sections, such as `crt` for stage2 heads."""
    fields = section.model_fields.values()
    return [f.default for f in fields if f.description is None and isinstance(f.default, str)]


def _sections_at(location: tuple) -> list[type[BaseModel]]:
    sections: list[type[BaseModel]] = [Config]
    for part in location:
        inside = [
            m
            for s in sections
            if part in s.model_fields
            for m in _models(s.model_fields[part].annotation)
        ]
        sections = inside or [s for s in sections if part in _tags(s)] or sections
    return sections


def _field_at(location: tuple) -> FieldInfo | None:
    for section in _sections_at(location[:-1]):
        if location and location[-1] in section.model_fields:
            return section.model_fields[location[-1]]
    return None


def _all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for key, field in section.model_fields.items():
        below = [k for m in _models(field.annotation) for k in _all_keys(m, f"{prefix}{key}.")]
        keys += below or [prefix + key]
    return keys


def template() -> str:
    """`configs/folder_template.yaml`: every key with its default, unit, range and meaning."""
    lines = [
        "# Every key with its default. Generated from src/schema.py by `python -m src.config`;",
        "# copy it, keep the keys you change, delete the rest.",
    ]
    for key, field in Config.model_fields.items():
        lines += ["", *_template_field(key, field, Config(), 0)]
    return "\n".join(lines) + "\n"


def _template_field(key: str, field: FieldInfo, owner: BaseModel, depth: int) -> list[str]:
    pad, value = "  " * depth, getattr(owner, key)
    comment = [f"{pad}# {line}" for line in _wrap(_meaning(field), 96 - len(pad))]
    if isinstance(value, BaseModel):
        inner = [
            line
            for k, f in type(value).model_fields.items()
            for line in _template_field(k, f, value, depth + 1)
        ]
        return [*comment, f"{pad}{key}:", *inner]
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        lines = [*comment, f"{pad}{key}:"]
        for item in value:
            inner = [
                line
                for k, f in type(item).model_fields.items()
                for line in _template_field(k, f, item, depth + 2)
            ]
            first = next(i for i, line in enumerate(inner) if not line.lstrip().startswith("#"))
            inner[first] = f"{pad}  - {inner[first].lstrip()}"
            lines += inner
        return lines
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1000)
    return [*comment, f"{pad}{key}: {text.replace('...', '').strip()}"]


def _meaning(field: FieldInfo) -> str:
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(m, name)}"
        for m in field.metadata
        for name, sign in limits.items()
        if getattr(m, name, None) is not None
    ]
    options = [] if _models(field.annotation) else [str(v) for v in _literals(field.annotation)]
    others = [t for m in _models(field.annotation) for t in _tags(m)]
    notes = [" | ".join(options)] if len(options) > 1 else []
    notes += [f"one of: {', '.join(others)}"] if others else []
    notes += [", ".join(found)] if found else []
    return (field.description or "") + (f" [{'; '.join(notes)}]" if notes else "")


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) if text else []


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "configs" / "folder_template.yaml"
    target.write_text(template(), encoding="utf-8")
    print(f"wrote {target}")
