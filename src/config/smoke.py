"""`--smoke`: the whole config once, on a few images for an epoch, in a dataset of its own.

What decides which code runs stays as it is: network, losses, augmentation, heads, steps, views,
formats. What decides how long it runs shrinks. Nothing it writes is beside real runs.
"""

from src.config.names import SMOKE
from src.config.read import with_values
from src.config.schema import Config
from src.config.shorter import shortened_to
from src.errors import UserError

IMAGES = 200  # training images; one of each class is there in any case
FOLDS = 2
TRIALS = 2  # of searches
LONGEST = 8  # epochs; one where all that changes between epochs fits into it


def smoked(config: Config, origin: str) -> Config:
    """Errors: UserError that begins with `origin` for a config that no few epochs can keep."""
    values = {
        "data.name": config.dataset + SMOKE,
        "data.limit": min(config.data.limit or IMAGES, IMAGES),
        "folds.k": FOLDS,
        "search.epochs": None,
        "search.fold": min(config.search.fold, FOLDS - 1),
        "search.trials": min(config.search.trials, TRIALS),
        "search.stage2.trials": min(config.search.stage2.trials, TRIALS),
        "posthoc.search.trials": min(config.posthoc.search.trials, TRIALS),
        "train.tracker": "none",  # a tracker's page is for real runs
    }
    for i, head in enumerate(config.stage2):
        values[f"stage2.{i}.views"] = min(head.views, 1)
        if getattr(head, "epochs", 0):  # 0 trains nothing; some heads have none
            values[f"stage2.{i}.epochs"] = 1
    if not config.train.epochs:
        return with_values(config, values, origin)
    for epochs in range(1, LONGEST):  # a step of train.resizing, or a thaw, wants epochs of its own
        try:
            return with_values(config, _training(config, epochs) | values, origin)
        except UserError:
            continue
    return with_values(config, _training(config, LONGEST) | values, origin)


def _training(config: Config, epochs: int) -> dict:
    """Values of so few epochs, in all of which images are mixed, if they ever are."""
    values = shortened_to(config, epochs)
    return values | ({"train.mixing.off_epochs": 0} if config.train.mixing.off_epochs else {})
