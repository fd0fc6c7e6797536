"""Keys of the label text: what the classes are called, and what turns that into vectors."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from src.config.section import Section, named

NAMES = "class_names.csv"  # under data.root, where text.names names no other


class TextEncoder(Section):
    """templates: around each name, where text.templates names none · by_class_id: it has a row for
    each class_id and reads no name"""

    templates: ClassVar[tuple[str, ...]] = ("{}",)
    by_class_id: ClassVar[bool] = False

    @property
    def source(self) -> str:
        """Where its weights are: a name, or the path of a directory or file."""
        return self.model


class SentenceTransformers(TextEncoder):
    name: Literal["sentence_transformers"] = "sentence_transformers"
    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="a name on the hub, or a local directory with its files",
    )


class HuggingFace(TextEncoder):
    name: Literal["huggingface"] = "huggingface"
    model: str = Field(
        "google-bert/bert-base-uncased",
        description="any AutoModel, by its name on the hub or a local directory: the mean of its "
        "last hidden states over the tokens",
    )


class OpenCLIP(TextEncoder):
    templates: ClassVar[tuple[str, ...]] = ("a photo of a {}.",)

    name: Literal["open_clip"] = "open_clip"
    model: str = Field("ViT-B-16-quickgelu", description="as open_clip lists it")
    pretrained: str = Field("openai", description="a tag of open_clip, or a local weights file")

    @property
    def source(self) -> str:
        return self.pretrained


class Precomputed(TextEncoder):
    by_class_id: ClassVar[bool] = True

    name: Literal["npz"] = "npz"
    file: str = Field(
        "class_text.npz", description="arrays class_id [K], text, and embeddings [K, E]"
    )

    @property
    def source(self) -> str:
        return self.file


Encoder = named(SentenceTransformers, HuggingFace, OpenCLIP, Precomputed)


class Text(Section):
    encoder: Encoder = Field(
        default_factory=SentenceTransformers,
        description="names to vectors; needs `pip install -r requirements-text.txt`, but npz, a "
        "file of vectors that were made elsewhere",
    )
    names: str | None = Field(
        None,
        description="a CSV under data.root with the columns class_id and name, in any language; "
        f"several names of a class in several rows, or between `;`. null: {NAMES} if it is there, "
        "otherwise class_name of classes.csv with spaces for underscores and without numbers such "
        "as `001.` and `n02119789_`",
    )
    templates: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="sentences around each name, which stands for {}; the vectors of a class's "
        "names and sentences are averaged. null: what the encoder knows: for open_clip `a photo of "
        "a {}.`, for others the name alone",
    )

    @field_validator("templates")
    @classmethod
    def _placed(cls, templates: tuple[str, ...] | None):
        for text in templates or ():
            if text.count("{}") != 1:
                raise ValueError(f"{text!r}: expected {{}} once, where the name goes")
        return templates

    @property
    def sentences(self) -> tuple[str, ...]:
        """The templates that count."""
        return self.encoder.templates if self.templates is None else self.templates


def needs_text(*parts: Any) -> bool:
    """Whether a section anywhere in these parts of a config has the trait `text`: its network,
    initialiser or head looks at `Classes.text`."""
    return any(getattr(section, "text", False) is True for section in _sections(parts))


def _sections(value: Any) -> Iterator[Section]:
    if isinstance(value, Section):
        yield value
        for key in type(value).model_fields:
            yield from _sections(getattr(value, key))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _sections(item)
