"""A zip as it comes from the competition's page, extracted below data/raw.

Nothing of it is written outside its own directory: names that lead elsewhere, links and encrypted
files are refused before anything is written. The directory appears under its name when it is whole.
"""

import errno
import shutil
import stat
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from src import cli
from src.artifacts.whole import half_made
from src.errors import UserError, some

RAW = Path("data/raw")
FULL = 0.95  # share of the free disk that an archive may fill


def unpacked(path: Path) -> Path:
    """The directory of what a zip holds, data/raw/<name>; taken as it is where it is there already.
    Zips inside it are extracted beside themselves.

    Errors: UserError for what is no zip, or damaged, encrypted, too large for the disk, or holds
    names that lead outside; and for another directory of that name.
    """
    target = RAW / path.stem
    with _open(path) as archive:
        members = _members(archive, path)
        if target.exists():
            if all(_same(target, name, info) for name, info in members.items()):
                return target
            raise UserError(
                f"{target}: is there already and is not what {path} holds. Inspect the directory "
                f"itself (--inspect {target}), or move it away, or rename the zip."
            )
        _check_space(members, path)
        cli.say(f"{path}: extracting {len(members)} files to {target}")
        with half_made(target) as half:
            _extract(archive, members, half, path)
            for inner in sorted(half.rglob("*.zip")):
                _extract_inner(inner, path)
            with suppress(FileExistsError):  # of another start of this command, which was faster
                return _moved(half, target)
    return unpacked(path)


def _moved(half: Path, target: Path) -> Path:
    """Errors: FileExistsError where there is something in `target` by now."""
    try:
        return half.replace(target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError from error


def _extract_inner(inner: Path, outer: Path) -> None:
    """A zip inside one: into the directory that it is in, or into one of its name where it would
    write over what is there."""
    with _open(inner) as archive:
        members = _members(archive, inner)
        _check_space(members, inner)
        taken = any((inner.parent / name).exists() for name in members)
        tops = {PurePosixPath(name).parts[0] for name in members}
        place = inner.parent / inner.stem if taken or tops != {inner.stem} else inner.parent
        _extract(archive, members, place, Path(f"{outer}/{inner.name}"))


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable zip ({error}); download it again") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Its files by name. Errors: UserError, before anything is written."""
    files = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in files]
    if windows := [n for n in names if "\\" in n and not _leads_outside(n.replace("\\", "/"))]:
        raise UserError(
            f"{path}: {len(windows)} names in it have \\ where / is expected: {some(windows)}. "
            "Nothing was extracted. Extract it by hand (`7z x`), and inspect the directory."
        )
    outside = [name for name in names if _leads_outside(name)]
    outside += [i.filename for i in files if stat.S_ISLNK(i.external_attr >> 16)]
    if outside:
        raise UserError(
            f"{path}: {len(outside)} names in it lead outside its directory, or are links: "
            f"{some(outside)}. Nothing was extracted; such an archive is damaged or malicious."
        )
    if locked := [info.filename for info in files if info.flag_bits & 1]:
        raise UserError(
            f"{path}: {len(locked)} files in it are encrypted: {some(locked)}. Extract it with its "
            "password, and inspect the directory."
        )
    return dict(zip(names, files, strict=True))


def _leads_outside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    odd = "\\" in name or "\0" in name or name.startswith("/") or ":" in parts[:1]
    drive = len(parts[0]) > 1 and parts[0][1] == ":" if parts else True
    return odd or drive or ".." in parts


def _check_space(members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    RAW.mkdir(parents=True, exist_ok=True)
    needed = sum(info.file_size for info in members.values())
    free = shutil.disk_usage(RAW).free
    if needed > FULL * free:
        raise UserError(
            f"{path}: holds {needed / 2**30:.1f} GiB, and the disk of {RAW} has "
            f"{free / 2**30:.1f} GiB free. Free some space, or extract it elsewhere and inspect "
            "that directory."
        )


def _extract(archive: zipfile.ZipFile, members: dict, target: Path, path: Path) -> None:
    try:
        for name, info in members.items():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(place, "wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path}: {name} cannot be extracted ({error}); nothing was kept. Download the zip "
            "again, or extract it by hand and inspect the directory."
        ) from error


def _same(target: Path, name: str, info: zipfile.ZipInfo) -> bool:
    place = target / name
    return place.is_file() and place.stat().st_size == info.file_size
