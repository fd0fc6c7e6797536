"""Exact versions of what is installed and needed to predict."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# what src imports when 05 and 06 run; what these need in turn is looked up
NEEDED = (
    "torch", "torchvision", "timm", "accelerate", "albumentations", "opencv-python-headless",
    "pillow", "imagehash", "numpy", "scipy", "pandas", "scikit-learn", "safetensors", "pydantic",
    "pyyaml", "matplotlib", "tqdm", "psutil", "packaging",
)  # fmt: skip
OPTIONAL = ("open-clip-torch", "optuna")  # of towers, and of searches


def wheels() -> list[str]:
    """`name==version`, sorted, of everything that is needed, with all that it needs."""
    environment = default_environment() | {"extra": ""}
    found: dict[str, str] = {}
    left = [*NEEDED, *OPTIONAL]
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # optional, or of another platform
            continue
        for text in requires(name) or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate(environment):
                left.append(one.name)
    return [f"{name}=={number}" for name, number in sorted(found.items())]
