"""Which choices of a config a network does not go with."""

from src.config.networks import NetworkSection


def check_network(model, train) -> None:
    """Errors: ValueError for combinations of a network with training that make no sense.

    model, train: the sections of the config
    """
    network = model.network
    asked = f"model.network={network.name}"
    if train.auxiliaries and network.unlabelled:
        raise ValueError(
            f"train.auxiliaries: with {asked} {network.unlabelled}, so there is no label that an "
            "auxiliary could learn from them"
        )
    if train.criterion.name == "lade" and not network.whole_batches:
        raise ValueError(
            "train.criterion lade compares the logits that one network gives to all images of a "
            f"batch, and parts of {asked} see some of them or a mixture; set "
            "train.criterion={name: cross_entropy}"
        )
    if train.compile and not network.compiles:
        raise ValueError(
            f"train.compile compiles a network's forward pass, and {asked} trains its parts one by "
            "one; set train.compile=false"
        )
    if model.tuning is not None:
        _check_tuning(model.tuning, network, asked)
    if model.neck is not None:
        _check_neck(model.neck, network, train, asked)
    if train.mixing.alphas and network.unmixed:
        raise ValueError(f"train.mixing does not go with {asked}: {network.unmixed}")
    _check_second(network, train, asked)
    if train.resizing and network.one_size:
        raise ValueError(f"train.resizing does not go with {asked}: {network.one_size}; remove it")
    for size in (model.image_size, *(step.size for step in train.resizing)):
        network.check(model.model_copy(update={"image_size": size}), train)


def _check_tuning(tuning, network: NetworkSection, asked: str) -> None:
    why = network.untuned
    if tuning.name == "prompts" and network.name == "transfg":
        why = "it chooses patches by their places among the tokens, which prompts would shift"
    if why is not None:
        raise ValueError(
            f"model.tuning={tuning.name} does not go with {asked}: {why}; remove one of them"
        )


def _check_neck(neck, network: NetworkSection, train, asked: str) -> None:
    if not network.necks:
        fitting = [s for s in NetworkSection.__subclasses__() if s.necks]
        names = ", ".join(s.model_fields["name"].default for s in fitting)
        raise ValueError(
            f"model.neck stands between pooled features and one head, as in {names}; {asked} has "
            "several of these, remove it"
        )
    if neck.norm and train.micro_batch == 1:
        raise ValueError(
            "model.neck.norm: batch norm needs two images or more, and train.micro_batch is 1; "
            "raise it, or set model.neck.norm=false"
        )


def _check_second(network: NetworkSection, train, asked: str) -> None:
    second = train.second_sampler
    if network.second == "same" and second != "same":
        raise ValueError(
            f"{asked} contrasts two views of each image; set train.second_sampler=same"
        )
    if network.second == "needed" and second is None:
        raise ValueError(
            f"{asked} trains its second branch on images of train.second_sampler; set "
            "train.second_sampler=reversed"
        )
    if second == "same" and network.second != "same":
        raise ValueError(
            f"train.second_sampler=same gives two views of each image, which {_with('same')} "
            f"contrasts; {network.name} would learn nothing from the second, choose another "
            "sampler or remove it"
        )
    if second is not None and network.second == "unused" and not train.mixing.alphas:
        raise ValueError(
            f"train.second_sampler is used by {_with('optional', 'needed', 'same')} and by "
            f"two-sampler mixing; with {asked} and train.mixing off, remove it"
        )


def _with(*second: str) -> str:
    """Names of the networks with these needs of a second sampler."""
    sections = NetworkSection.__subclasses__()
    return ", ".join(s.model_fields["name"].default for s in sections if s.second in second)
