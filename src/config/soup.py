"""Keys of a soup: a network of other experiments' weights instead of a training."""

from typing import Literal

from pydantic import Field

from src.config.section import Section


class Soup(Section):
    members: tuple[str, ...] = Field(
        (),
        description="experiments of the dataset, two or more, whose networks have one shape: other "
        "seeds or settings, from the same pretrained weights",
    )
    mode: Literal["uniform", "greedy"] = Field(
        "greedy",
        description="uniform: the mean of all; greedy: from the best one on, each that does not "
        "make the mean worse. For each fold that is judged on the held-out images of the others",
    )
    batchnorm: bool = Field(
        True, description="estimate the statistics of batch norm anew, on the training images"
    )

    def check(self) -> None:
        """Errors: ValueError unless there is something to average."""
        if len(set(self.members)) < max(2, len(self.members)):
            raise ValueError(
                f"soup.members: two experiments or more, each once, found {list(self.members)}"
            )
