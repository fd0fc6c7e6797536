"""Keys of a soup: a network of finished experiments' weights instead of a training."""

from typing import Literal

from pydantic import Field

from src.config.section import Section


class Soup(Section):
    members: tuple[str, ...] = Field(
        (),
        description="experiments of the dataset, two or more, whose networks have one shape: other "
        "seeds or settings, from the same pretrained weights; of mode wise one",
    )
    mode: Literal["uniform", "greedy", "wise"] = Field(
        "greedy",
        description="uniform: the mean of all; greedy: from the best one on, each that does not "
        "make the mean worse; wise: of one experiment, between the weights that it began from, "
        "its initialised head with them, and those it was trained to, wherever on that line the "
        "metric is best. For each fold that is judged on the held-out images of the others",
    )
    grid: int = Field(
        10, ge=1, le=100, description="wise: equal parts of that line, at whose ends to look"
    )
    batchnorm: bool = Field(
        True, description="estimate the statistics of batch norm anew, on the training images"
    )

    def check(self) -> None:
        """Errors: ValueError unless there is something to average."""
        if self.mode == "wise":
            if len(self.members) != 1:
                raise ValueError(
                    "soup.mode: wise goes from where one experiment began to where it ended; name "
                    f"one in soup.members, found {list(self.members)}"
                )
            return
        if "grid" in self.changed():
            raise ValueError(f"soup.grid is used by mode wise, and mode is {self.mode}; remove it")
        if len(set(self.members)) < max(2, len(self.members)):
            raise ValueError(
                f"soup.members: two experiments or more, each once, found {list(self.members)}"
            )
