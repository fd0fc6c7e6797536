"""What predict.keep_networks asks for: the logits of single networks, beside their mean.

A fold's `posthoc` is made with the steps that 04 chose on the other folds, so that nothing in it
knows the labels that the fold holds out, as its network does not. Only which head the steps start
from is chosen on all.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from src.artifacts.predictions import UNKNOWN, Predictions, network_file
from src.fusion import apply_recipe
from src.fusion.network import without_fold
from src.fusion.step import Head
from src.fusion.store import RECIPE


def keep_network(
    directory: Path,
    network: tuple[str, int | None],
    asked: tuple[str, ...],
    found: Predictions,
    logits: dict[str, np.ndarray],
    heads: dict[str, Head],
    recipe: dict,
    counts: np.ndarray,
) -> None:
    """Write networks/<name>/<head>.npz in `directory` for every head asked for.

    network: its name and fold · found: its predictions · logits: [N, K] of its heads by name, those
    of `posthoc` with what 04 chose on all folds · heads, recipe, counts: as in `apply_recipe`.
    Errors: UserError when posthoc.json does not say what 04 chose without the fold.
    """
    name, fold = network
    if fold is not None and "posthoc" in asked:
        given = {head: z for head, z in logits.items() if head != "posthoc"}
        alone = without_fold(recipe, fold, directory.parent / "posthoc" / RECIPE)
        f, columns = found.features, found.columns
        logits = given | {"posthoc": apply_recipe(alone, f, heads, given, counts, columns)}
    of_fold = np.full(len(found.label), UNKNOWN if fold is None else fold)
    for head in asked:
        one = replace(found.with_logits(logits[head]), fold=of_fold)
        one.save(directory / network_file(name, head))
