"""Parameter-efficient tuning: a frozen body, of which little is trained, or to which little is
added. One file each; `model.tuning` chooses from the table below.

A method is a function (its config section, backbone, `Classes`) → None. It gets a backbone in which
nothing trains; what it adds, or frees again, does. What is outside the backbone (head, neck) trains
anyway. Additions are modules and parameters within blocks, and hooks that know nothing but their
module, so that a copy of a network has its own; no name of the body changes.
"""

from collections.abc import Callable

from torch import nn

from src.artifacts.dataset import Classes
from src.networks.tuning.adaptformer import adaptformer
from src.networks.tuning.lora import lora
from src.networks.tuning.parts import bias, last_blocks, layer_norm
from src.networks.tuning.prompts import prompts

TUNINGS: dict[str, Callable] = {
    "adaptformer": adaptformer,
    "lora": lora,
    "prompts": prompts,
    "bias": bias,
    "last_blocks": last_blocks,
    "layer_norm": layer_norm,
}
ADDED = (".adapter.", ".lora.", ".prompts")  # in the names of what methods add to a body


def tune(section, backbone: nn.Module, classes: Classes) -> None:
    """Freeze the backbone but for what the method trains.

    Errors: UserError for a backbone that the method can do nothing with.
    """
    backbone.requires_grad_(False)
    TUNINGS[section.name](section, backbone, classes)


def added(name: str) -> bool:
    """Whether a tensor of a network is no part of the body but was added to it."""
    return any(part in name for part in ADDED)
