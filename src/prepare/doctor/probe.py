"""--probe: no network is trained; heads are, on the features of the weights as they are."""

from src.config.model import Model
from src.errors import UserError
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.looks import Looks

HEADS = [{"head": "crt", "init": "class_means"}, {"head": "cosine"}, {"head": "ncm"},
         {"head": "knn"}]  # fmt: skip
COST = "nothing is trained: each image goes through the network once, and 03 fits heads on that"


def probing(model: Model, looks: Looks) -> tuple[list[Choice], list[Choice], str]:
    """The keys of the section model that a probe adds, those of the others, and a sentence about
    what it costs. Errors: UserError for a network that has seen no images."""
    if model.pretrained is False:
        raise UserError(
            f"--probe: images of {looks.side} pixels are too small for pretrained networks, and "
            "one of random weights has no features worth a head; leave out --probe"
        )
    why = "the stage-1 classifier is the classes' mean features, compared by their cosine"
    return (
        [Choice("model.head", "cosine", why), Choice("model.head_init", "class_means", "as above")],
        [
            Choice("train.epochs", 0, f"a probe: {COST}"),
            Choice("stage2", HEADS, "four ways from features to classes; 04 takes the best"),
            Choice("predict.tta", {"flip": False}, "a second view doubles the time of 05"),
        ],
        f"a probe: {COST}",
    )
