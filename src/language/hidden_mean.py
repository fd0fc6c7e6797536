"""The mean hidden state of a text transformer: H = Σ_t m_t h_t / Σ_t m_t, with h_t [E] the last
layer's state of token t and m the attention mask (a report on TransFG for long-tailed food, with
BERT).
"""

import numpy as np

from src.errors import UserError, needs, shortened
from src.language.local import files_sha256, local_directory

KEY = "text.encoder.model"
BATCH = 64  # texts at once


def hidden_mean(section, texts: list[str]) -> tuple[np.ndarray, dict[str, str]]:
    """[M, E], and the model's hash. Errors: UserError when the package or the model is missing."""
    needs("transformers", KEY)
    directory = local_directory(section.model, KEY)
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModel.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{KEY}={section.model}: {directory} holds no model that AutoModel takes "
            f"({shortened(str(error))})"
        ) from error
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            tokens = tokenizer(
                texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt"
            )
            states = model(**tokens).last_hidden_state  # [B, T, E]
            mask = tokens["attention_mask"][:, :, None].to(states)  # [B, T, 1]
            rows.append(((states * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(rows), {"sha256": files_sha256(directory)}
