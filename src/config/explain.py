"""pydantic's errors in the words of the config file."""

import difflib

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from src.config.other_words import KEYS
from src.config.schema import Config
from src.config.walk import choices_in, sections_in, sure_keys, tags_of
from src.errors import shortened

ALIKE = 0.75  # difflib's ratio from which two words may be one; `search` and `epochs` have 0.5


def explain(error: dict) -> str:
    """One pydantic error in the words of the config file."""
    location = error["loc"]
    key = ".".join(str(p) for i, p in enumerate(location) if not _is_tag(location[:i], p))
    if error["type"] == "extra_forbidden":
        return f"unknown key `{shortened(key)}`; {_nearest_key(location)}"
    if error["type"] == "value_error":
        return f"`{key}`: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    field = _field_at(location)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    options, found = [], error["input"]
    if error["type"] in ("model_type", "model_attributes_type"):
        inside = [key for s in _sections_at(location) for key in s.model_fields]
        keys = f"with keys of its own: {', '.join(inside)}"
        return f"`{key}`: found {shortened(repr(found))}; expected a section {keys}{meaning}"
    if error["type"] == "union_tag_not_found":
        by = error["ctx"]["discriminator"]
        known = ", ".join(tag for s in _sections_at(location) for tag in tags_of(s))
        return f"`{key}`: found {found!r}; it needs {by}, one of {known}{meaning}"
    if error["type"] == "literal_error" and field is not None:
        options = [str(value) for value in choices_in(field.annotation)]
    elif error["type"] == "union_tag_invalid":
        found = found.get(error["ctx"]["discriminator"].strip("'"))
        options = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
    near = difflib.get_close_matches(str(found), options, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"`{key}`: found {shortened(repr(found))}; {shortened(error['msg'], 400)}{hint}{meaning}"


def _is_tag(above: tuple, part: str | int) -> bool:
    """Whether a part of a location names a member of a union of sections, and is no key there."""
    sections = _sections_at(above)
    known = any(part in s.model_fields for s in sections)
    return not known and any(part in tags_of(s) for s in sections)


def _nearest_key(location: tuple) -> str:
    """Of the keys that could have been meant: first those beside the unknown one, then those of the
    same section, then all, the least deep of equals. A word of others for a key counts as the key;
    likeness alone counts where it is strong, or it would offer `search` for `epochs`."""
    unknown = str(location[-1])
    siblings = [key for s in _sections_at(location[:-1]) for key in s.model_fields]
    parents = [str(p) for i, p in enumerate(location[:-1]) if _is_key(location[:i], p)]
    ours = KEYS.get(unknown.lower(), unknown)
    near = [key for key in siblings if key == ours] or _alike(unknown, siblings)
    if near:
        return f"did you mean `{near[0]}`?"
    every = sorted(sure_keys(), key=lambda key: key.count("."))
    last = {key: key.rsplit(".", 1)[-1] for key in every}
    for words, top in (((unknown, ours), parents[:1]), ((ours, unknown), [])):
        for word in words:
            found = [k for k in every if last[k] == word and k.split(".")[: len(top)] == top]
            if found:
                return f"did you mean `{found[0]}`?"
    near = difflib.get_close_matches(unknown, list(last.values()), 1, ALIKE)
    if near:
        return f"did you mean `{next(key for key in every if last[key] == near[0])}`?"
    return f"known here: {', '.join(siblings)}"


def _alike(word: str, others: list[str]) -> list[str]:
    """One with other letters here and there, or cut short: `epoch`, `pool` for `pooling`."""
    near = difflib.get_close_matches(word, others, 1, ALIKE)
    return near or [o for o in others if len(word) > 2 and o.startswith(word)]


def _is_key(above: tuple, part: str | int) -> bool:
    return any(part in s.model_fields for s in _sections_at(above))


def _sections_at(location: tuple) -> list[type[BaseModel]]:
    sections: list[type[BaseModel]] = [Config]
    for part in location:
        inside = [
            m
            for s in sections
            if part in s.model_fields
            for m in sections_in(s.model_fields[part].annotation)
        ]
        sections = inside or [s for s in sections if part in tags_of(s)] or sections
    return sections


def _field_at(location: tuple) -> FieldInfo | None:
    for section in _sections_at(location[:-1]):
        if location and location[-1] in section.model_fields:
            return section.model_fields[location[-1]]
    return None
