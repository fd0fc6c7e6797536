"""`configs/folder_template.yaml`, generated: `python -m src.config.template`."""

import textwrap
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from src.config.schema import Config
from src.config.tree import plain
from src.config.walk import choices_in, sections_in, tags_of


def template() -> str:
    """`configs/folder_template.yaml`: every key with its default, unit, range and meaning."""
    lines = [
        "# Every key with its default. `python -m src.config.template` makes it from src/config.",
        "# Copy it, keep the keys you change, delete the rest.",
    ]
    for key, field in Config.model_fields.items():
        lines += ["", *_template_field(key, field, Config(), 0)]
    return "\n".join(lines) + "\n"


def _template_field(key: str, field: FieldInfo, owner: BaseModel, depth: int) -> list[str]:
    pad, value = "  " * depth, getattr(owner, key)
    comment = [f"{pad}# {line}" for line in _wrap(_meaning(field), 96 - len(pad))]
    others = [m() for m in sections_in(field.annotation) if tags_of(m) and m is not type(value)]
    if isinstance(value, BaseModel):
        lines = [*comment, f"{pad}{key}:", *_keys(value, depth + 1)]
        return lines + [f"{pad}# {line}" for m in others for line in [f"{key}:", *_keys(m, 1)]]
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        lines = [*comment, f"{pad}{key}:"]
        shown = [line for item in value for line in _item(item, depth + 2)]
        others = [m for m in others if type(m) not in map(type, value)]
        return lines + shown + [f"{pad}  # {line}" for m in others for line in _item(m, 1)]
    if others and value == ():
        shown = [f"{pad}  # {line}" for m in others for line in _item(m, 1)]
        return [*comment, f"{pad}{key}: []", *shown]
    absent = [m for m in get_args(field.annotation) if sections_in(m) == [m]]
    if value is None and (absent or others):
        optional = others or [m() for m in absent]
        shown = [f"{pad}# {line}" for m in optional for line in [f"{key}:", *_keys(m, 1)]]
        return [*comment, f"{pad}{key}: null", *shown]
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1000)
    return [*comment, f"{pad}{key}: {text.replace('...', '').strip()}"]


def _keys(section: BaseModel, depth: int) -> list[str]:
    fields = type(section).model_fields.items()
    return [line for k, f in fields for line in _template_field(k, f, section, depth)]


def _item(section: BaseModel, depth: int) -> list[str]:
    """A member of a list; the first line that is a key gets the dash."""
    lines = _keys(section, depth)
    first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"{'  ' * (depth - 1)}- {lines[first].lstrip()}"
    return lines


def _meaning(field: FieldInfo) -> str:
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(m, name)}"
        for m in field.metadata
        for name, sign in limits.items()
        if getattr(m, name, None) is not None
    ]
    options = (
        [] if sections_in(field.annotation) else [str(v) for v in choices_in(field.annotation)]
    )
    others = [t for m in sections_in(field.annotation) for t in tags_of(m)]
    notes = [" | ".join(options)] if len(options) > 1 else []
    notes += [f"one of: {', '.join(others)}"] if others else []
    notes += [", ".join(found)] if found else []
    return (field.description or "") + (f" [{'; '.join(notes)}]" if notes else "")


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) if text else []


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "configs" / "folder_template.yaml"
    target.write_text(template(), encoding="utf-8")
    print(f"wrote {target}")
