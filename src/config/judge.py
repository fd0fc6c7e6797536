"""Keys of the one rule by which 04 and 06 keep what they fitted."""

from pydantic import Field

from src.config.section import Section


class Judge(Section):
    standard_errors: float = Field(
        2.5,
        ge=0,
        le=10,
        description="what is fitted after training (a step of 04, the combiner of 06) is kept if "
        "its cross-fitted gain is above so many standard errors of that gain: paired bootstrap "
        "over the out-of-fold images, 200 draws. Intervals that are shown are 95 %, 1.96 of them. "
        "2.5: of pure noise a chain of steps then keeps something in a few percent of draws "
        "(benchmarks/noise.py). Folds share training images, so that a cross-fitted gain varies "
        "more than its images do (Nadeau and Bengio, 2003)",
    )
    min_gain: float = Field(
        0.0,
        ge=0,
        description="and above this: a share of 1, in nats for what is scored by NLL (temperature)",
    )
