"""Ranges for users, exact versions for `make` and CI: they agree, and so does what is installed."""

import os
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

LOCK = Path(__file__).with_name("requirements.lock")


def asked(*files: str) -> dict[str, Requirement]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found}


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "the lock holds `name==version` alone"
    return {canonicalize_name(name): number for name, number in pairs}


ALWAYS = asked("requirements.txt")
EVERY = asked("requirements.txt", "requirements-text.txt")


@pytest.mark.parametrize("name", EVERY)
def test_every_range_has_both_ends_and_holds_the_lock(name):
    text = str(EVERY[name].specifier)
    assert re.search("==|~=|<", text) and re.search("==|~=|>=", text), text
    number = locked().get(name)
    assert number is not None, f"{name} is not in {LOCK}: run `make lock`"
    assert Version(number) in EVERY[name].specifier


@pytest.mark.parametrize("name", EVERY)
def test_what_is_installed_is_within_the_range(name):
    try:
        number = version(name)
    except PackageNotFoundError:
        assert name not in ALWAYS, f"{name} is missing: pip install -r requirements.txt"
        pytest.skip("optional")
    assert Version(number) in EVERY[name].specifier


def test_the_lock_has_what_the_locked_need():
    """Or pip would choose among versions that nobody tested."""
    lock, environment = locked(), default_environment() | {"extra": ""}
    for name in lock:
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for one in needed:
            if one.marker is None or one.marker.evaluate(environment):
                assert canonicalize_name(one.name) in lock, f"{name} needs {one}: `make lock`"


@pytest.mark.skipif(
    "CI" not in os.environ, reason="elsewhere any version within the ranges will do"
)
def test_ci_has_exactly_the_lock():
    differing = {}
    for name, number in locked().items():
        try:
            if version(name) != number:
                differing[name] = (version(name), number)
        except PackageNotFoundError:
            continue  # of another platform
    assert not differing
