"""Parameters on disk: plain data as JSON, arrays beside it in an .npz that the JSON refers to.

In the JSON stands {"npz": name, "shape": [100]} where an array was; equal arrays are kept once.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from src.artifacts.files import read_arrays, read_json, write_arrays, write_json
from src.artifacts.work import checked
from src.errors import UserError

RECIPE, ARRAYS = "posthoc.json", "posthoc.npz"
REFERENCE = {"npz", "shape"}
NEEDED = {"head": str, "steps": list, "steps/*/step": str, "steps/*/params": dict}


def pack(tree: Any, arrays: dict[str, np.ndarray], name: str = "") -> Any:
    """`tree` as plain data; its arrays go into `arrays`, named by where they were found first."""
    if isinstance(tree, dict):
        return {k: pack(v, arrays, f"{name}.{k}".lstrip(".")) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [pack(v, arrays, f"{name}.{i}".lstrip(".")) for i, v in enumerate(tree)]
    if isinstance(tree, np.generic):
        return tree.item()
    if not isinstance(tree, np.ndarray):
        return tree
    same = (k for k, v in arrays.items() if v.dtype == tree.dtype and np.array_equal(v, tree))
    name = next(same, name)
    arrays[name] = tree
    return {"npz": name, "shape": list(tree.shape)}


def unpack(tree: Any, arrays: dict[str, np.ndarray], origin: Path) -> Any:
    """`tree` with its arrays back. Errors: UserError, which names `origin`, when one is missing or
    of another shape."""
    if isinstance(tree, list):
        return [unpack(value, arrays, origin) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() != REFERENCE:
        return {key: unpack(value, arrays, origin) for key, value in tree.items()}
    found = arrays.get(tree["npz"])
    if found is None or list(found.shape) != tree["shape"]:
        there = "is missing" if found is None else f"has shape {list(found.shape)}"
        raise UserError(
            f"{origin}: the array {tree['npz']} of shape {tree['shape']} is needed and {there}; "
            "run 04 again with --overwrite"
        )
    return found


def told(params: Any) -> str:
    """Parameters as a short text for tables; of an array its shape."""
    return json.dumps(brief(params), ensure_ascii=False)


def brief(tree: Any) -> Any:
    """`tree`, packed or not, with `array [100]` in the place of arrays."""
    if isinstance(tree, dict):
        if tree.keys() == REFERENCE:
            return f"array {tree['shape']}"
        return {key: brief(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [brief(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return f"array {list(tree.shape)}"
    return tree.item() if isinstance(tree, np.generic) else tree


def fingerprint(tree: Any) -> tuple[str, tuple[bytes, ...]]:
    """The same for equal parameters, for use as a key."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(pack(tree, arrays), sort_keys=True)
    return text, tuple(a.dtype.str.encode() + a.tobytes() for a in arrays.values())


def save_recipe(directory: Path, tree: dict) -> list[str]:
    """Write posthoc.json, and posthoc.npz if there are arrays; returns the names of the files."""
    arrays: dict[str, np.ndarray] = {}
    plain = pack(tree, arrays)
    if arrays:
        write_arrays(directory / ARRAYS, **arrays)
    else:
        (directory / ARRAYS).unlink(missing_ok=True)  # of an earlier result
    write_json(directory / RECIPE, plain)
    return [RECIPE, *([ARRAYS] if arrays else [])]


def load_recipe(directory: Path) -> dict:
    """What `save_recipe` wrote. Errors: UserError for a missing or damaged file."""
    path = directory / ARRAYS
    arrays = read_arrays(checked(path)) if path.is_file() else {}
    return unpack(read_json(checked(directory / RECIPE), NEEDED), arrays, path)
