"""Where a class's score comes from, for networks that do not say it themselves.

Class activation map (CAM; Zhou et al., CVPR 2016): behind average pooling and a linear layer the
score of a class is a sum over the places of the last feature map. A: that map, [D, h, w] · ŷ: the
predicted class · z: logits.

    z_ŷ = b_ŷ + Σ_ij M_ij,      M_ij = 1/(hw) Σ_d w_ŷd A_dij,      shown is max(M, 0)

For any other way from the map to the logits, M is its linear part, gradient times map (HiResCAM,
Draelos and Carin 2020; with average pooling also Grad-CAM, Selvaraju et al., ICCV 2017):

    M_ij = Σ_d ∂z_ŷ/∂A_dij A_dij

which is the M above where that way is pooling and a linear layer. Where it divides by the length of
the pooled features (cosine heads) or by their spread (ConvNeXt's layer norm), scaling A leaves z
as it is, so M sums to zero: it shows what speaks for the class more than the image's mean does.
Where several last maps lead to z (branches, experts) M is the sum over them: with hard routing, of
the expert that was chosen.

A vision transformer that averages its patch tokens has a map: these. One that classifies its class
token has none, and gets the attention rollout of src/networks/attention.py, the mean over heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call


def maps_of(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """`rollout` or `class_activation`, [N, h, w] at least 0, of images [N, 3, H, W]; none where the
    network has neither. The rollout is that of `network.backbone`."""
    from src.networks.attention import class_rollout, no_rollout  # slow to import: timm

    backbone = network.backbone
    if getattr(backbone, "global_pool", "") == "token":
        if no_rollout(backbone):
            return {}
        name, found = "rollout", on_grid(class_rollout(backbone, images).mean(1).float(), images)
    else:
        name, found = "class_activation", class_activation(network, images)
    return {} if found is None else {name: found}


def class_activation(network: nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    """Maps [N, h, w] of the predicted classes, max(M, 0) in float32; network in eval mode.

    images: [N, 3, H, W]. None where no map leads to the logits, or its places form no grid.
    """
    frozen = {name: p.detach() for name, p in network.named_parameters()}
    with torch.inference_mode(False), torch.enable_grad(), pooled(network) as found:
        logits = functional_call(network, frozen, (images.clone(),)).logits.float()
        score = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
        maps = [x for _, x in found]
        if not maps:
            return None
        gradients = torch.autograd.grad(score, maps, materialize_grads=True)
    shares = [
        on_grid(summed(body, x.detach().float() * gradient.float()), images)
        for (body, x), gradient in zip(found, gradients, strict=True)
    ]
    return None if any(share is None for share in shares) else sum(shares).clamp(min=0)


@contextmanager
def pooled(network: nn.Module) -> Iterator[list[tuple[nn.Module, torch.Tensor]]]:
    """Each backbone of the network with what it hands to its `forward_head` (which pools) while the
    block runs; what comes before is not part of the graph, so a backward pass ends there."""
    found: list[tuple[nn.Module, torch.Tensor]] = []
    bodies = [module for module in network.modules() if hasattr(module, "forward_head")]

    def recording(body: nn.Module):
        forward_head = body.forward_head

        def recorded(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            x = x.detach().requires_grad_()
            found.append((body, x))
            return forward_head(x, *args, **kwargs)

        return recorded

    for body in bodies:
        body.forward_head = recording(body)
    try:
        yield found
    finally:
        for body in bodies:
            del body.forward_head  # the class's own is left


def summed(body: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Over the channels of what a backbone pools: [N, D, h, w] or [N, h, w, D] → [N, h, w], and of
    tokens [N, L, D], of which class token and registers come first, → [N, places]."""
    if values.ndim == 4:
        last = "NHWC" in str(getattr(body, "output_fmt", ""))
        return values.sum(-1 if last else 1)
    return values.sum(-1)[:, getattr(body, "num_prefix_tokens", 0) :]


def on_grid(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor | None:
    """Values [N, places], row by row, as [N, h, w] in the images' proportions; None if the places
    are no such grid. A grid stays as it is."""
    if values.ndim == 3:
        return values
    places, (height, width) = values.shape[1], images.shape[-2:]
    h = max(1, round((places * height / width) ** 0.5))
    return values.unflatten(1, (h, places // h)) if places % h == 0 else None
