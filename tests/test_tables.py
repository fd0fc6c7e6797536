"""Every name that a config takes has an implementation, and every implementation a name."""

from typing import get_args

import pytest
from torchvision.transforms.v2 import AutoAugmentPolicy

from src.auxiliaries import AUXILIARIES
from src.config import metric
from src.config.augment import AutoAugment, Policy
from src.config.auxiliaries import Auxiliary
from src.config.data import Data
from src.config.ensemble import Combiner
from src.config.heads import Head, MaxNorm
from src.config.initialisers import HeadInit
from src.config.losses import Criterion, Sampler
from src.config.model import Model, Pooling
from src.config.networks import Network
from src.config.posthoc import PosthocStep
from src.config.section import Section, named
from src.config.text import Encoder
from src.config.tuning import Tuning
from src.config.walk import choices_in, sections_in, tags_of
from src.data.policies import POLICIES
from src.data.samplers import SAMPLERS
from src.data.transforms import INTERPOLATION, RESIZES
from src.ensemble.combiners import COMBINERS
from src.fusion import STEPS
from src.initialisers import INITIALISERS
from src.language import ENCODERS
from src.losses import CRITERIA
from src.metrics import table as metrics
from src.networks.build import NETWORKS
from src.networks.pooling import POOLINGS
from src.networks.tuning import TUNINGS
from src.prepare.read import READERS
from src.rebalance import HEADS
from src.rebalance.maxnorm import LOSSES

UNIONS = {
    "networks": (Network, NETWORKS),
    "tunings": (Tuning, TUNINGS),
    "poolings": (Pooling, POOLINGS),
    "criteria": (Criterion, CRITERIA),
    "auxiliaries": (Auxiliary, AUXILIARIES),
    "heads": (Head, HEADS),
    "policies": (Policy, POLICIES),
    "initialisers": (HeadInit, INITIALISERS),
    "steps": (PosthocStep, STEPS),
    "combiners": (Combiner, COMBINERS),
    "text encoders": (Encoder, ENCODERS),
}


def of_key(section: type[Section], key: str) -> list:
    return choices_in(section.model_fields[key].annotation)


CHOICES = {
    "samplers": (get_args(Sampler), SAMPLERS),
    "sources": (of_key(Data, "source"), READERS),
    "metrics": ((*metric.PLAIN, "nll"), metrics.NAMED),  # nll: what calibration is judged by
    "families of metrics": (metric.FAMILIES, metrics.FAMILIES),
    "maxnorm's losses": (of_key(MaxNorm, "loss"), LOSSES),
    "interpolations": (of_key(Model, "interpolation"), INTERPOLATION),
    "learned policies": (of_key(AutoAugment, "learned_on"), [p.value for p in AutoAugmentPolicy]),
    "resizes": (of_key(Model, "resize"), RESIZES),
}


@pytest.mark.parametrize("what", UNIONS)
def test_every_section_of_a_union_has_its_line_in_the_table_and_every_line_its_section(what):
    union, table = UNIONS[what]
    names = [tag for section in sections_in(union) for tag in tags_of(section)]
    assert len(names) == len(set(names)) and set(names) == set(table)


@pytest.mark.parametrize("what", CHOICES)
def test_every_choice_of_a_key_is_implemented_and_everything_implemented_is_a_choice(what):
    choices, table = CHOICES[what]
    assert set(choices) == set(table)


def test_a_name_without_an_implementation_is_noticed():
    class Forgotten(Section):
        name: str = "forgotten"

    union = named(*sections_in(Network), Forgotten)
    names = {tag for section in sections_in(union) for tag in tags_of(section)}
    assert names - set(NETWORKS) == {"forgotten"}
