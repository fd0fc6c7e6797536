"""The base of every section of a config: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict

VOLATILE = {"volatile": True}  # keys that change how fast a run goes, never what comes out


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self) -> list[str]:
        """Keys that differ from their default. What a file names does not tell: `config.yaml` of a
        run names every key."""
        fields = type(self).model_fields.items()
        default = {key: field.get_default(call_default_factory=True) for key, field in fields}
        return [key for key, value in default.items() if getattr(self, key) != value]
