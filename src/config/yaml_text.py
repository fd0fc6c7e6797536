"""YAML text → plain data, or a sentence that says what is wrong with it.

PyYAML takes the last of two equal keys without a word, lets `[[[…` or an anchor that holds itself
end the process, and raises nearly anything for `!!int abc`. Configs need none of what makes it so:
text, numbers, true, false, null, lists and mappings with text as keys. Dates stay text.
"""

import math
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from src.errors import UserError

DEPTH = 30  # lists and mappings inside each other; the deepest key has 5
LONGEST = 2**18  # characters, also after anchors are put in; the template of all keys has 2**15
INTEGERS = 2**63
TAG = "tag:yaml.org,2002:"
VALUES = {TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
KEYS = {TAG + "str", TAG + "merge"}


def load_yaml(text: str, origin: str) -> Any:
    """Plain data; None for an empty text. Errors: UserError that begins with `origin`."""
    if len(text) > LONGEST:
        raise UserError(f"{origin}: {len(text)} characters, expected a config of at most {LONGEST}")
    try:
        loader = _Loader(text)
        loader.name = origin  # it says where: in "origin", line 3, column 5
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # `"\Uffffffff"` is a ValueError
        raise UserError(f"{origin}: not valid YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != TAG + "timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent, index):
        """Stop before Python's own stack does."""
        self.depth += 1
        if self.depth > DEPTH:
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, f"more than {DEPTH} levels inside each other", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            _check(node, [], [0])
        return node

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.removeprefix(TAG)
            raise _wrong(node, f"{_shown(node)} cannot be read as {kind}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(node, f"{_shown(node)} is no finite number")
        if isinstance(value, int) and not -INTEGERS <= value < INTEGERS:
            raise _wrong(node, f"{_shown(node)} is too large, whole numbers have 64 bits")
        return value


def _check(node: yaml.Node, outside: list[yaml.Node], size: list[int]) -> None:
    """A tree of plain values as the anchors spell it out. outside: what `node` is inside of ·
    size: a list with the number of characters so far. Errors: ConstructorError."""
    if any(node is other for other in outside):
        raise _wrong(node, "an anchor holds itself")
    if len(outside) >= DEPTH:
        raise _wrong(node, f"more than {DEPTH} levels inside each other")
    if node.tag not in VALUES:
        raise _wrong(node, f"{node.tag.replace(TAG, '!!')} has no meaning in a config")
    size[0] += 1
    if isinstance(node, yaml.ScalarNode):
        size[0] += len(node.value)
        _check_text(node)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        for key, value in node.value:
            size[0] += len(key.value)
            _check(value, [*outside, node], size)
    else:
        for item in node.value:
            _check(item, [*outside, node], size)
    if size[0] > LONGEST:
        raise _wrong(node, f"its anchors spell out more than {LONGEST} characters")


def _check_keys(node: yaml.MappingNode) -> None:
    """Keys are text and differ."""
    first: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(key, "a key must be one word, found a list or a mapping")
        if key.tag not in KEYS:
            raise _wrong(key, f"the key {_shown(key)} is no text; put it in quotes if it is meant")
        _check_text(key)
        if key.value in first:
            line = first[key.value].start_mark.line + 1
            raise _wrong(key, f"the key {_shown(key)} is there already, in line {line}; remove one")
        first[key.value] = key


def _check_text(node: yaml.ScalarNode) -> None:
    """No text that a file name or a UTF-8 file cannot hold: `"\\0"`, or half a character."""
    if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _wrong(node, f"{_shown(node)} holds a character that is none")


def _shown(node: yaml.ScalarNode) -> str:
    text = node.value
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _wrong(node: yaml.Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
