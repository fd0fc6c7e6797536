"""Stage 2: heads on frozen features. One file each; `stage2: [{head: …}]` chooses from the table.

A head is a function (its config, FeatureSet, seed, device) → kind and arrays, as in src/logits.py.
"""

from src.rebalance.crt import fit_crt
from src.rebalance.ncm import fit_ncm

HEADS = {"crt": fit_crt, "ncm": fit_ncm}
