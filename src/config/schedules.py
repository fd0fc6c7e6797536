"""Keys of training that change from one epoch to the next, beside the learning rate."""

from pydantic import Field

from src.config.section import EPOCHS, Section


class Frozen(Section):
    name: str = Field(description="shell-style pattern of parameters' names, backbone.*")
    until: int | None = Field(
        None,
        ge=1,
        json_schema_extra=EPOCHS,
        description="epochs after which they train, too; null: never",
    )


def check_frozen(items: tuple[Frozen, ...], epochs: int) -> None:
    """Errors: ValueError for what would thaw after the training."""
    for item in items:
        if item.until is not None and item.until >= epochs:
            raise ValueError(
                f"freeze: {item.name} until {item.until} never thaws in {epochs} epochs; remove "
                "`until`, which keeps it out of checkpoints, too, or lower it"
            )


class Resizing(Section):
    size: int = Field(ge=8, description="pixels, height and width of training images")
    share: float = Field(gt=0, le=1, description="of the epochs")


def boundaries(steps: tuple[Resizing, ...], epochs: int) -> list[int]:
    """The epoch after the last one of each step: sums of shares, to the nearest epoch."""
    shares = [step.share for step in steps]
    return [int(sum(shares[: i + 1]) * epochs + 0.5) for i in range(len(shares))]


def check_resizing(steps: tuple[Resizing, ...], epochs: int) -> None:
    """Errors: ValueError for a step that has no epoch, and for more than all epochs."""
    starts = [0, *boundaries(steps, epochs)]
    for step, start, end in zip(steps, starts, starts[1:], strict=False):
        if start == end:
            raise ValueError(
                f"resizing: a share of {step.share} of {epochs} epochs is none, so no image would "
                f"have {step.size} pixels; raise it, or remove this step"
            )
    total = sum(step.share for step in steps)
    if total > 1 + 1e-9:
        raise ValueError(f"resizing: the shares add up to {total:g}, above 1; lower them")
    if total < 1 - 1e-9 and starts[-1] >= epochs:
        raise ValueError(
            f"resizing: shares of {total:g} take all {epochs} epochs, and the last are to be at "
            "model.image_size; lower them, or let them add up to 1, which is training smaller"
        )
