"""Models of the Hugging Face hub as local directories: what is there already comes first."""

from pathlib import Path

from src.artifacts.files import sha256
from src.artifacts.hub import hub_or_cache
from src.artifacts.work import digest
from src.errors import UserError, shortened

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # weights without pickle, and tokenizers


def local_directory(model: str, key: str) -> Path:
    """The directory of a model's files: `model` itself, the hub's cache, or fetched from the hub.

    key: of the config, for the error. Errors: UserError where it is in none of them, at once where
    there is no network.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=FILES))
    except HFValidationError as error:
        raise UserError(f"{key}={model}: no such directory, and no name on the hub") from error
    except LocalEntryNotFoundError:
        pass
    hub_or_cache()
    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except OSError as error:
        raise UserError(
            f"{key}={model}: not on this machine, and the hub does not give it "
            f"({shortened(str(error))}). Fetch it where there is a network, `hf download {model}`, "
            f"and set {key} to the directory with its files; or make the vectors there and set "
            "text.encoder={name: npz, file: …}"
        ) from error


def local_sha256(source: str | Path) -> str | None:
    """Of a model's directory or file; None of a name, behind which the files do not change."""
    path = Path(source)
    if path.is_dir():
        return files_sha256(path)
    return sha256(path) if path.is_file() else None


def files_sha256(directory: Path) -> str:
    """Of all files of a model: their names and hashes."""
    found = {path for pattern in FILES for path in directory.rglob(pattern)}
    return digest({path.relative_to(directory).as_posix(): sha256(path) for path in sorted(found)})
