"""pydantic's errors in the words of the config file."""

import difflib

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from src.config.schema import Config
from src.config.upgrade import NETWORKS
from src.config.walk import all_keys, choices_in, sections_in, tags_of

MOVED = {f"model.{name}": f"write model.network: {{name: {name}, …}}" for name in NETWORKS}


def explain(error: dict) -> str:
    """One pydantic error in the words of the config file."""
    location = error["loc"]
    key = ".".join(map(str, _without_tags(location)))
    if error["type"] == "extra_forbidden":
        return f"unknown key `{key}`; {MOVED.get(key) or _nearest_key(location)}"
    if error["type"] == "value_error":
        return f"`{key}`: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    field = _field_at(location)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    options, found = [], error["input"]
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
    return f"`{key}`: found {found!r}; {error['msg']}{hint}{meaning}"


def _without_tags(location: tuple) -> list:
    """The location as it stands in the file: pydantic also names the member of a union."""
    sections, way = [Config], []
    for part in location:
        below = [s for s in sections if part in s.model_fields]
        if isinstance(part, str) and not below and any(part in tags_of(s) for s in sections):
            sections = [s for s in sections if part in tags_of(s)]
            continue
        way.append(part)
        if below:
            sections = [m for s in below for m in sections_in(s.model_fields[part].annotation)]
    return way


def _nearest_key(location: tuple) -> str:
    unknown = str(location[-1])
    siblings = [key for s in _sections_at(location[:-1]) for key in s.model_fields]
    near = difflib.get_close_matches(unknown, siblings, 1, 0.5)
    near = near or [k for k in all_keys() if k.rsplit(".", 1)[-1] == unknown]
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(siblings)}"


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
