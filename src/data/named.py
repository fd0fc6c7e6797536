"""Transforms of albumentations by their names and arguments: `train.augment.extra`.

They are what YAML can say of them; a wrong name, argument or value is an error here, where
albumentations warns or fails on the first image. With augment.py, the only file that knows it.
"""

import difflib
import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for newer versions of itself
    import albumentations as A

from src.errors import UserError, shortened

BASES = (A.BasicTransform, A.BaseCompose)
NOT_NAMED = {  # abstract, a whole pipeline of its own, or in need of code
    "BasicTransform", "DualTransform", "ImageOnlyTransform", "NoOp", "Transform3D", "BaseCompose",
    "Compose", "ReplayCompose", "Lambda",
}  # fmt: skip
KNOWN = {
    name: kind
    for name, kind in vars(A).items()
    if inspect.isclass(kind) and issubclass(kind, BASES) and name not in NOT_NAMED
}
CHOOSERS = ("OneOf", "SomeOf", "RandomOrder", "OneOrOther")  # each of theirs may come alone


def named_transforms(specs: Iterable[dict], size: int) -> list:
    """Transforms as the config names them. size: pixels, of the images that they get and must give.

    Errors: UserError that names the key of an unknown name or argument, with the nearest right one,
    of a value that albumentations does not take, and of a transform that does not turn an image of
    uint8 RGB [size, size, 3] into another one.
    """
    found = []
    for i, spec in enumerate(specs):
        key = f"train.augment.extra[{i}]"
        found.append(_built(spec, key))
        _check_images(spec, size, key)
    return found


def _built(spec: dict, key: str, **instead: Any) -> Any:
    """instead: arguments in place of the spec's, of it and of all inside it"""
    arguments = {k: v for k, v in (spec | instead).items() if k != "name"}
    kind = _kind(spec["name"], key)
    _check_arguments(kind, arguments, key)
    if "transforms" in arguments:
        parts = _parts(spec, key)
        arguments["transforms"] = [_built(part, at, **instead) for at, part in parts.items()]
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(_explained(error, spec["name"], key)) from error


def _explained(error: Exception, name: str, key: str) -> str:
    """What albumentations says of arguments, in the words of the config."""
    if not isinstance(error.__cause__, ValidationError):
        return f"{key}: {name} does not take its arguments: {shortened(str(error), 400)}"
    first = error.__cause__.errors(include_url=False)[0]
    at = ".".join([key, *map(str, first["loc"])])
    if first["type"] == "missing":
        return f"{at} is missing; {name} needs it"
    found = f", found {shortened(repr(first['input']))}" if first["loc"] else ""
    return f"{at}: {name} does not take it{found}; {shortened(first['msg'], 400)}"


def _kind(name: str, key: str) -> type:
    if name in KNOWN:
        return KNOWN[name]
    lower = {known.lower(): known for known in KNOWN}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, 3, 0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "see https://explore.albumentations.ai"
    raise UserError(f"{key}.name: albumentations {A.__version__} has no {shortened(name)}; {hint}")


def _check_arguments(kind: type, arguments: dict, key: str) -> None:
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(known)}"
            raise UserError(
                f"{key}.{shortened(str(name))}: {kind.__name__} of albumentations "
                f"{A.__version__} has no such argument; {hint}"
            )


def _parts(spec: dict, key: str) -> dict[str, dict]:
    """The transforms inside one, by their keys."""
    inside = spec["transforms"] if isinstance(spec["transforms"], list | tuple) else []
    inside = [{"name": part} if isinstance(part, str) else part for part in inside]
    names = [part.get("name") if isinstance(part, dict) else None for part in inside]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{key}.transforms: expected a list of transforms, each with its name, found "
            f"{shortened(repr(spec['transforms']))}"
        )
    return {f"{key}.transforms[{i}]": part for i, part in enumerate(inside)}


def _check_images(spec: dict, size: int, key: str) -> None:
    """That it keeps the shape and type of an image, and draws by the seed that it is given alone.
    Noise stands for an image: of a blank one, most transforms make the same."""
    if spec["name"] in CHOOSERS and "transforms" in spec:
        for at, part in _parts(spec, key).items():
            _check_images(part, size, at)
        return
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    always = A.Compose([_built(spec, key, p=1.0)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # "do not apply": it would do nothing
            results = [_seeded(always, image) for _ in range(2)]
    except Exception as error:  # of any type: it may want masks, boxes or other images
        raise UserError(
            f"{key}: {spec['name']} fails on an image alone "
            f"({type(error).__name__}: {shortened(str(error), 300)}); leave it out"
        ) from error
    shape, dtype = np.shape(results[0]), getattr(results[0], "dtype", type(results[0]).__name__)
    if (shape, dtype) != (image.shape, image.dtype):
        raise UserError(
            f"{key}: {spec['name']} makes {dtype} {list(shape)} of an image; training wants "
            f"uint8 {list(image.shape)} back. Crops and sizes are train.augment.crop and "
            "model.image_size, and images are normalised by model.mean and model.std"
        )
    if not np.array_equal(*results):
        raise UserError(f"{key}: {spec['name']} draws by itself, whatever the seed; leave it out")


def _seeded(transform: A.Compose, image: np.ndarray) -> Any:
    transform.set_random_seed(0)
    return transform(image=image)["image"]
