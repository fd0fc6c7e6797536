"""What a finished network of stage 1 leaves for later stages."""

from dataclasses import dataclass, replace

from src.artifacts.heads import head_file, save_head
from src.artifacts.lock import locked
from src.artifacts.predictions import Predictions
from src.artifacts.trained import write_config
from src.artifacts.work import Work
from src.data.transforms import Preprocessing
from src.logits import head_distance
from src.networks.base import Network
from src.networks.freeze import Rest
from src.networks.weights import save_network
from src.training.fold import Fold


@dataclass(frozen=True)
class Made:
    """A network to be kept, what it expects of images, and what of it the files leave out."""

    network: Network
    prep: Preprocessing
    rest: Rest | None = None


def keep(
    job: Fold,
    made: Made,
    found: Predictions | None,
    metrics: dict[str, float],
    work: Work,
    outputs: list[str],
    facts: dict,
) -> None:
    """Write weights, heads and held-out predictions, config.yaml of the experiment, which is what
    its networks were trained with and not what is being tried, and the manifest last; in the main
    process.

    found: held-out predictions, None of `full` · metrics: of them · outputs: what else is there ·
    facts: for the manifest
    """
    if not job.accelerator.is_main_process:
        return
    network, directory = made.network, job.directory
    path = directory / "weights.safetensors"
    save_network(path, network, job.config.model, made.prep, job.data, made.rest)
    outputs = [path.name, *outputs]
    heads = network.heads()
    for branch, (kind, arrays) in heads.items():
        outputs.append(head_file(branch))
        save_head(directory / outputs[-1], kind, arrays)
    if found is not None:
        if "" in heads:  # the network's own logits are this head's
            kind, arrays = heads[""]
            found = replace(found, distance=head_distance(found.features, arrays, kind))
        found.save(directory / "oof.npz")
        outputs.append("oof.npz")
    with locked(directory.parent):  # as other folds may be trained by another command
        write_config(directory.parents[1], job.config, job.searched, job.decided)
    work.finish(
        outputs,
        metrics,
        seed=job.config.seed,
        device=str(job.accelerator.device),
        processes=job.accelerator.num_processes,
        **facts,
    )
