"""What the doctor decides: a key, its value, and the reason, which becomes a comment."""

import textwrap
from dataclasses import dataclass
from typing import Any

import yaml

WIDTH = 96


@dataclass(frozen=True)
class Choice:
    """key: as in --set, `data.root` · value: plain data; ... leaves the key out, and its comment
    stands alone, for what cannot be told · why: a sentence · options: lines to put there instead"""

    key: str
    value: Any
    why: str
    options: tuple[str, ...] = ()


def yaml_of(choices: list[Choice], head: str) -> str:
    """A config with the reason above each key. Sections stand in the order of their first key."""
    lines = [f"# {line}" for line in _wrapped(head, WIDTH)]
    sections: dict[str, list[Choice]] = {}
    for choice in choices:
        section, _, key = choice.key.partition(".")
        sections.setdefault(section, []).append(choice)
    for section, inside in sections.items():
        lines.append("")
        nested = any("." in choice.key for choice in inside)
        given = any(choice.value is not ... for choice in inside)
        if nested:
            lines.append(f"{section}:" if given else f"# {section}:")
        for choice in inside:
            lines += _lines(choice, "  " if nested else "", choice.key.rpartition(".")[2])
    return "\n".join(lines) + "\n"


def tree_of(choices: list[Choice]) -> dict:
    """What the file says, as plain data."""
    tree: dict = {}
    for choice in choices:
        section, _, key = choice.key.partition(".")
        if choice.value is not ...:
            if key:
                tree.setdefault(section, {})[key] = choice.value
            else:
                tree[section] = choice.value
    return tree


def _lines(choice: Choice, pad: str, key: str) -> list[str]:
    lines = [f"{pad}# {line}" for line in _wrapped(choice.why, WIDTH - len(pad))]
    if choice.value is not ...:
        text = yaml.safe_dump(choice.value, default_flow_style=True, width=10**6)
        lines.append(f"{pad}{key}: {text.removesuffix('...' + chr(10)).strip()}")
    return lines + [f"{pad}# {option}" for option in choice.options]


def _wrapped(text: str, width: int) -> list[str]:
    """One line per sentence at least where it says so by a line break; what others wrote cannot end
    a comment."""
    parts = ["".join(c if c.isprintable() else "?" for c in part) for part in text.split("\n")]
    return [line for part in parts for line in textwrap.wrap(part, width) or [""]]
