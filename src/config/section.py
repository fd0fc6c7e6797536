"""What sections of a config are made of: frozen models, and unions of them told apart by a name."""

from typing import Annotated, Any, ClassVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# keys that change how fast a run goes, or what is kept beside its result, never the result
VOLATILE = {"volatile": True}
EPOCHS = {"unit": "epochs"}  # keys that count epochs: a search's shorter trainings shrink them


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
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


def named(*sections: type[Section], by: str = "name") -> Any:
    """The type of a key that takes one of these sections, told apart by its key `by`. A name alone
    is short for the section with all else at its default: `bbn` for `{name: bbn}`."""

    def whole(value: Any) -> Any:
        return {by: value} if isinstance(value, str) else value

    if len(sections) == 1:
        return Annotated[sections[0], BeforeValidator(whole)]
    return Annotated[Union[sections], Field(discriminator=by), BeforeValidator(whole)]  # noqa: UP007
