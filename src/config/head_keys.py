"""`maxnorm.ratio`: the keys of stage 2's heads, as a search names them."""

import difflib

from src.config.schema import Config
from src.config.search import HEAD_RANGES, Range
from src.errors import UserError


def head_key(config: Config, key: str, origin: str) -> str:
    """The place of a head's key: `maxnorm.ratio` → `stage2.1.ratio`.

    Errors: UserError for a head that stage2 has not, or a key that its search cannot set.
    """
    name, _, last = key.rpartition(".")
    names = [head.title for head in config.stage2]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}.{last}?" if near else ""
        raise UserError(
            f"{origin}: expected <head>.<key> with a head of stage2, which has {names}{hint}"
        )
    index = names.index(name)
    fixed = ("head", "name", "bn")  # what the head is, and what cached features cannot tell
    right = [k for k in type(config.stage2[index]).model_fields if k not in fixed]
    if getattr(config.stage2[index], "bn", "frozen") == "train":
        raise UserError(
            f"{origin}: {name} has bn: train, which has no cached features to search on"
        )
    if last not in right:
        near = difflib.get_close_matches(last, right, 1)
        hint = f"; did you mean {name}.{near[0]}?" if near else ""
        raise UserError(f"{origin}: the keys of {name} are {', '.join(right)}{hint}")
    return f"stage2.{index}.{last}"


def head_ranges(config: Config) -> dict[str, dict[str, Range]]:
    """By name of a head: where 03 searches its keys (`<head>.<key>`), if any."""
    found: dict[str, dict[str, Range]] = {}
    for head in config.stage2:
        name = head.title
        if (asked := config.search.stage2.keys) is not None:
            found[name] = {k: span for k, span in asked.items() if k.rpartition(".")[0] == name}
        else:
            frozen = getattr(head, "bn", "frozen") == "frozen"
            own = [k for k in HEAD_RANGES if frozen and k in type(head).model_fields]
            found[name] = {f"{name}.{k}": HEAD_RANGES[k] for k in own}
    return found
