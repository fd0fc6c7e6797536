"""The Hugging Face hub: whether it answers, and which weights of timm its cache on this machine
holds."""

import urllib.request
from pathlib import Path

HUB = "https://huggingface.co"
SECONDS = 5  # that the hub may take to answer at all
TIMM = "models--timm--"  # directories of the cache
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # that timm takes from it


def hub_or_cache() -> bool:
    """Where the hub does not answer, let its client look at the cache alone and not try for a
    minute. Returns whether it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(HUB, method="HEAD"), timeout=SECONDS)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def cached_timm() -> list[str]:
    """Names with tags, `resnet50.a1_in1k`, of timm's models whose weights are in the cache."""
    from huggingface_hub import constants

    found = Path(constants.HF_HUB_CACHE).glob(f"{TIMM}*/snapshots/*/*")
    parents = (path.parents[2].name for path in found if path.name in WEIGHTS and path.exists())
    return sorted({name.removeprefix(TIMM) for name in parents})
