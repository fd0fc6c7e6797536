"""What must be said of an experiment wherever it shows: that it trained on pseudo-labels."""

from pathlib import Path

from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST, made
from src.config.names import STAGE1

PSEUDO = "pseudo-labels"  # the mark beside its name


def pseudo_labelled(home: Path) -> str | None:
    """A sentence on the pseudo-labels that stage 1 of an experiment trained with; None: it did not.

    home: of the experiment. Read from the manifests of its networks.
    """
    paths = made(home / STAGE1, MANIFEST)
    facts = [read_json(path).get("pseudo") for path in paths]
    facts = [found for found in facts if found]  # older manifests lack the key
    if not facts:
        return None
    counts = [found["images"] for found in facts]
    span = (
        f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    )
    rounds = " and ".join(sorted({f"{f['experiment']}/{f['head']}" for f in facts}))
    return (
        f"Trained with {span} pseudo-labelled test images per network, labelled by {rounds}: "
        "out-of-fold images have no such labels, so scores on them and on the test set may differ "
        "more than usual."
    )


def marks(home: Path) -> dict[str, str]:
    """For the manifest of a later stage: `pseudo_labelled` with the sentence, or nothing."""
    note = pseudo_labelled(home)
    return {"pseudo_labelled": note} if note else {}


def marked(name: str, home: Path) -> str:
    """The name of an experiment, or what is of it, with its mark if it has one."""
    return f"{name} ({PSEUDO})" if pseudo_labelled(home) else name
