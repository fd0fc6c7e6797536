"""What a network takes over from weights that were trained as another one, and what that says.

Any network starts from any other on the same backbone: the weights of one go by the names that they
have in a plain network (`Network.plain`), and from there into the other (`Network.adopt`). Between
two of a kind they keep their names, and every part goes to its counterpart.

What is about particular classes goes by their class_id: row t of a head is the row of the same
class there, or stays fresh. With the same classes in the same order everything is copied.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from src.errors import UserError, some
from src.networks.base import PLAIN, Network
from src.networks.heads import Cosine, LabelEmbedding, Linear
from src.networks.tuning import added

State = dict[str, torch.Tensor]
SHOWN = 8  # groups of names of one sort, in the line printed


class Rows(NamedTuple):
    """Labels own[i] of the network and theirs[i] of its source are one class. unknown: why the
    source's classes are not known, if so"""

    own: list[int]
    theirs: list[int]
    unknown: str | None = None


def matched(own: list[str], theirs: list[str]) -> Rows | None:
    """Rows by class_id; None: the same classes in the same order."""
    if own == theirs:
        return None
    place = {class_id: label for label, class_id in enumerate(theirs)}
    pairs = [(label, place[c]) for label, c in enumerate(own) if c in place]
    return Rows([t for t, _ in pairs], [s for _, s in pairs])


@dataclass(frozen=True)
class WarmStart:
    """Where a network begins. Names of tensors are groups, as `backbone.fc.* (2)`.

    source: the file · copied: how many of `total` came as they were, or in other rows · resized:
    onto another grid · new: not in the source · reshaped: new, as the source's have another shape ·
    unused: in the source alone · head: which of its rows came · classes: of the new head, where all
    but the heads came and the source has no more than one of its own; else 0
    """

    source: str
    copied: int = 0
    total: int = 0
    resized: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    head: str | None = None
    classes: int = 0

    def __str__(self) -> str:
        if not self.total:
            return self.source
        if self.classes:
            return f"{self.source}: pretrained body, new head of {self.classes} classes"
        parts = [f"{self.source}: copied {self.copied} of {self.total} tensors"]
        for name, groups in self._groups().items():
            if groups:
                more = f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
                parts.append(f"{name}: {', '.join(groups[:SHOWN])}{more}")
        return "; ".join([*parts, *([f"head: {self.head}"] if self.head else [])])

    def facts(self) -> dict:
        """For a manifest."""
        found = {"source": self.source, "copied": self.copied, "of": self.total}
        found |= {name: list(groups) for name, groups in self._groups().items() if groups}
        return found | ({"head": self.head} if self.head else {})

    def _groups(self) -> dict[str, tuple[str, ...]]:
        return {
            "resized": self.resized,
            "left new": self.new,
            "left new, other shape": self.reshaped,
            "unused": self.unused,
        }


def translated(network: Network, state: State, kind: type[Network]) -> tuple[State, State]:
    """Weights of a network of `kind` under the names of this one, and those that have no place."""
    if type(network) is kind:
        return network.adopt(state), {}
    plain = kind.plain(state)
    usable = {k: v for k, v in plain.items() if k.startswith(PLAIN)}
    return network.adopt(usable), {k: v for k, v in plain.items() if k not in usable}


def take(
    network: Network,
    state: State,
    rows: Rows | None,
    source: str,
    convert: Callable[[State], State],
    without_place: Iterable[str] = (),
) -> WarmStart:
    """Fill the network from `state`, under its own names.

    rows: of which classes, None: the same · convert: to this network's grids · without_place: names
    in the source, to be reported. The scale of a cosine head, unless it is learned, and the vectors
    of the names are the config's, and are not copied.
    """
    kinds = Linear | Cosine | LabelEmbedding
    heads = {n for n, module in network.named_modules() if isinstance(module, kinds)}
    tensors = network.state_dict()
    scales = {k for k in tensors if _layer(k) in heads and k.endswith((".scale", ".text"))}
    own = {k: v for k, v in tensors.items() if k not in scales}
    given = {k: v for k, v in state.items() if k not in scales}
    found = convert(given)
    head, partly = None, set()
    if rows is not None:
        found, head, partly = _by_class(own, found, heads, rows)
    reshaped = {k for k in own if k in found and own[k].shape != found[k].shape}
    whole = {_layer(k) for k in reshaped} & heads  # a bias means nothing without its weight
    reshaped |= {k for k in own if k in found and _layer(k) in whole}
    usable = {k: v for k, v in found.items() if k in own and k not in reshaped}
    about = [k for k in own if k.startswith(network.of_classes)] if network.of_classes else []
    if rows is not None or not all(k in usable for k in about):
        usable = {k: v for k, v in usable.items() if k not in about}
    _check_body(own, usable, found, source)
    network.load_state_dict(usable, strict=False)  # what differs is named in the line printed
    resized = {k for k in usable if k in given and given[k].shape != usable[k].shape} - partly
    new = own.keys() - usable.keys() - reshaped
    unused = (state.keys() - tensors.keys()) | set(without_place)
    return WarmStart(
        source,
        len(usable.keys() - resized - partly),
        len(own),
        grouped(resized, own),
        grouped(new, own),
        grouped(reshaped, own),
        grouped(unused, state.keys() | set(without_place)),
        head,
        0 if resized or reshaped or head else _new_head(own, state, heads, new, unused),
    )


def _new_head(own: State, state: State, heads: set[str], new: set[str], unused: set[str]) -> int:
    """Classes of the heads where these are all that is new, and what is unused is a weight [K', D],
    and a bias, that a plain backbone had in their place; else 0."""
    spare = sorted(unused)
    fits = not spare or (
        {f"{_layer(spare[0])}.{name}" for name in ("weight", "bias")} >= unused
        and _layer(spare[0]).startswith("backbone.")
        and all(state[k].ndim <= 2 for k in spare)
    )
    weights = [own[k] for k in new if k.endswith(".weight")]
    return len(weights[0]) if weights and fits and {_layer(k) for k in new} <= heads else 0


def _check_body(own: State, usable: State, found: State, source: str) -> None:
    body = [k for k in own if k.startswith("backbone.") and not added(k)]
    if sum(k in usable for k in body) >= len(body) / 2:
        return
    missing, other = sorted(own.keys() - found.keys()), own.keys() & found.keys() - usable.keys()
    raise UserError(
        f"{source}: only {len(usable)} of the network's {len(own)} tensors are in it. Missing: "
        f"{some(missing)}; of another shape: {some(sorted(other))}; in the file only: "
        f"{some(sorted(found.keys() - own.keys()))}. Is it a file for model.backbone, with the "
        "same model.kwargs?"
    )


def _by_class(
    own: State, state: State, heads: set[str], rows: Rows
) -> tuple[State, str | None, set[str]]:
    """`state` with the heads' rows [K, …] in the order of the network's classes, fresh ones between
    them; what to say of it; and the names of heads that are new in part."""
    names = {k for k in own if k in state and _layer(k) in heads and own[k].ndim}
    wide = {_layer(k) for k in names if own[k].shape[1:] != state[k].shape[1:]}
    names = {k for k in names if _layer(k) not in wide}
    if not names:
        return state, None, set()
    total = len(own[min(names)])
    state = {k: v for k, v in state.items() if k not in names} | {
        k: _placed(own[k], state[k], rows) for k in names if rows.own
    }
    said = rows.unknown or f"{len(rows.own)} of {total} classes by class_id"
    return state, said, names if 0 < len(rows.own) < total else set()


def _placed(own: torch.Tensor, theirs: torch.Tensor, rows: Rows) -> torch.Tensor:
    placed = own.clone()  # [K, …]
    placed[rows.own] = theirs[rows.theirs].to(placed)
    return placed


def fill(module: torch.nn.Module, state: State, source: str) -> None:
    """Load all of a module. Errors: UserError where `state`, of the file `source`, lacks some of
    it, or has another shape."""
    own = module.state_dict()
    unlike = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if unlike:
        raise UserError(
            f"{source}: {len(unlike)} of {len(own)} tensors of {type(module).__name__} are not in "
            f"it, or of another shape: {some(unlike)}. Is it a file for model.backbone, with the "
            "same model.kwargs?"
        )
    module.load_state_dict({k: state[k] for k in own})


def grouped(names: Iterable[str], every: Iterable[str]) -> tuple[str, ...]:
    """`names`, those of a whole module as `module.* (n)`; every: all names that there are."""
    names, counts = set(names), {}
    for name in every:
        for prefix in _prefixes(name):
            counts.setdefault(prefix, set()).add(name)
    groups: dict[str, int] = {}
    for name in sorted(names):
        whole = (p for p in _prefixes(name) if len(counts[p]) > 1 and counts[p] <= names)
        group = next(whole, None)
        key = name if group is None else f"{group}.*"
        groups[key] = groups.get(key, 0) + 1
    return tuple(f"{key} ({n})" if key.endswith(".*") else key for key, n in groups.items())


def _prefixes(name: str) -> list[str]:
    """Of the modules around a tensor, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _layer(key: str) -> str:
    return key.rpartition(".")[0]
