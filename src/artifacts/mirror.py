"""A directory again elsewhere, in directories of its own: files as links, or as copies."""

import os
from collections.abc import Callable, Container
from pathlib import Path

Put = Callable[[Path, Path], object]


def mirror(
    source: Path,
    target: Path,
    *,
    without: Container[str | Path] = (),
    whole: Container[str] = (),
    put: Put = os.symlink,
) -> None:
    """Whatever is then written below `target` leaves `source` as it is.

    without: names, or paths, that are left out; hidden files always are · whole: names of
    directories that are put as one · put: called with every file and its new place
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in without or path in without:
            continue
        if path.is_dir() and path.name not in whole:
            mirror(path, target / path.name, without=without, whole=whole, put=put)
        else:
            put(path, target / path.name)
