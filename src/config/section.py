"""The base of every section of a config: frozen, and an unknown key is an error."""

from typing import Annotated, Any, ClassVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

VOLATILE = {"volatile": True}  # keys that change how fast a run goes, never what comes out


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    gone: ClassVar[dict[str, str]] = {}  # keys that were here once, and where they went

    @model_validator(mode="before")
    @classmethod
    def _gone(cls, tree: Any) -> Any:
        for key in tree if isinstance(tree, dict) else ():
            if key in cls.gone:
                raise ValueError(f"`{key}` is no key any more: {cls.gone[key]}")
        return tree

    def changed(self) -> list[str]:
        """Keys that differ from their default. What a file names does not tell: `config.yaml` of a
        run names every key."""
        fields = type(self).model_fields.items()
        default = {key: field.get_default(call_default_factory=True) for key, field in fields}
        return [key for key, value in default.items() if getattr(self, key) != value]


def named(*sections: type[Section]) -> Any:
    """The type of a key that takes one of several sections, told apart by their `name`; a bare
    `focal` is short for `{name: focal}`."""
    union = Union[sections]  # noqa: UP007
    if len(sections) > 1:
        union = Annotated[union, Field(discriminator="name")]
    return Annotated[union, BeforeValidator(_spelled_out)]


def _spelled_out(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value
