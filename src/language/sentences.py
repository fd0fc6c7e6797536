"""Sentence embeddings of any sentence-transformers model (Reimers and Gurevych, EMNLP 2019)."""

import numpy as np

from src.errors import UserError, needs, shortened
from src.language.local import files_sha256, local_directory

KEY = "text.encoder.model"


def sentences(section, texts: list[str]) -> tuple[np.ndarray, dict[str, str]]:
    """[M, E], and the model's hash. Errors: UserError when the package or the model is missing."""
    needs("sentence_transformers", KEY)
    directory = local_directory(section.model, KEY)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{KEY}={section.model}: {directory} holds no sentence-transformers model "
            f"({shortened(str(error))})"
        ) from error
    rows = model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
    return rows, {"sha256": files_sha256(directory)}
