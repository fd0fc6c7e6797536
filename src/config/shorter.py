"""The same training in fewer epochs: what counts in epochs shrinks with them."""

from src.config.schema import Config
from src.config.section import EPOCHS, Section
from src.config.tree import dump_config, flatten


def counted_in_epochs(section: Section, prefix: str) -> list[str]:
    """Keys of a section, and of those in it, that count epochs of the training."""
    keys = []
    for key, field in type(section).model_fields.items():
        value, place = getattr(section, key), f"{prefix}.{key}"
        if isinstance(value, Section):
            keys += counted_in_epochs(value, place)
        elif isinstance(value, tuple):
            items = [(i, item) for i, item in enumerate(value) if isinstance(item, Section)]
            keys += [k for i, item in items for k in counted_in_epochs(item, f"{place}.{i}")]
        elif field.json_schema_extra == EPOCHS:
            keys.append(place)
    return keys


def shortened_to(config: Config, epochs: int) -> dict[str, int | float]:
    """Values by key of a training of so many epochs; what ends before the training still does."""
    now, values = flatten(dump_config(config)), {"train.epochs": epochs}
    for key in counted_in_epochs(config.model, "model") + counted_in_epochs(config.train, "train"):
        if now[key] is not None:
            scaled = now[key] * epochs / config.train.epochs
            last = epochs - 1 if now[key] < config.train.epochs else round(scaled)
            whole = max(min(round(scaled), last), int(now[key] > 0))
            values[key] = scaled if isinstance(now[key], float) else whole
    return values
