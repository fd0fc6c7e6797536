"""Label text: what classes are called → unit vectors [K, E], made once per dataset. One file per
encoder; `text.encoder` chooses from the table.

An encoder is a function (its config section, texts) → (vectors [M, E], what made them: names and
hashes of files). Torch and the text packages are imported where they are used.
"""

from src.language.clip_text import clip_text
from src.language.hidden_mean import hidden_mean
from src.language.precomputed import precomputed
from src.language.sentences import sentences

ENCODERS = {
    "sentence_transformers": sentences,
    "huggingface": hidden_mean,
    "open_clip": clip_text,
    "npz": precomputed,
}
