"""The base of every section of a config: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict

VOLATILE = {"volatile": True}  # keys that change how fast a run goes, never what comes out


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
