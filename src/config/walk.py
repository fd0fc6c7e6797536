"""What the types of a config's sections say: its sections, keys and choices."""

from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from src.config.schema import Config


def sections_in(annotation) -> list[type[BaseModel]]:
    """The section classes mentioned anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in sections_in(a)]


def tags_of(section: type[BaseModel]) -> list[str]:
    """What names a member of a union of sections, such as `crt` for stage2 heads."""
    fields = section.model_fields.values()
    return [f.default for f in fields if f.description is None and isinstance(f.default, str)]


def choices_in(annotation) -> list:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [v for a in get_args(annotation) for v in choices_in(a)]


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for key, field in section.model_fields.items():
        below = [k for m in sections_in(field.annotation) for k in all_keys(m, f"{prefix}{key}.")]
        keys += below or [prefix + key]
    return keys


def sure_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Keys that are there whatever the config says, and those that hold a section: all but what
    stands inside a choice of several sections, such as the gamma of focal loss."""
    keys = []
    for key, field in section.model_fields.items():
        inside = sections_in(field.annotation)
        below = sure_keys(inside[0], f"{prefix}{key}.") if len(inside) == 1 else []
        keys += [prefix + key, *below]
    return keys
