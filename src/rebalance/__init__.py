"""Stage 2: heads on frozen features. One file each; `stage2: [{head: …}]` chooses from the table.

A head is a function (its config, FeatureSet, seed, device) → kind and arrays, as in src/logits.py.
"""

from src.rebalance.cosine import fit_cosine
from src.rebalance.crt import fit_crt
from src.rebalance.knn import fit_knn
from src.rebalance.label_embedding import fit_label_embedding
from src.rebalance.lws import fit_lws
from src.rebalance.maxnorm import fit_maxnorm
from src.rebalance.ncm import fit_ncm
from src.rebalance.text_similarity import fit_text

HEADS = {
    "crt": fit_crt,
    "lws": fit_lws,
    "maxnorm": fit_maxnorm,
    "cosine": fit_cosine,
    "label_embedding": fit_label_embedding,
    "text": fit_text,
    "ncm": fit_ncm,
    "knn": fit_knn,
}
