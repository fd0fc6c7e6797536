"""Start-up: what is measured, and that `--help` imports nothing that is slow."""

import subprocess
import sys

import pytest

from benchmarks.startup import ROOT, SCRIPTS, TORCH, rows_of, seconds
from src.errors import UserError

SLOW = ("numpy", "pandas", "torch", "pydantic", "yaml", "sklearn", "matplotlib")


def test_time_up_to_the_first_line_and_of_all():
    command = [sys.executable, "-c", "print(1); sum(range(2 * 10**7))"]
    assert seconds(command) > 2 * seconds(command, first_line=True)
    with pytest.raises(UserError, match="no such thing"):
        seconds([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_ratios_are_of_the_same_round():
    found = {
        (TORCH, "begins"): [1.0, 2.0, 4.0],
        ("a.py", "help"): [0.1, 0.3, 0.2],
        ("a.py", "begins"): [3.0, 4.0, 4.0],
    }
    torch, script = rows_of(found)
    assert torch["of `import torch`"] == 1 and torch["--help, s"] == ""
    assert list(script.values()) == ["a.py", 0.2, 4.0, 2.0]
    torch, script = rows_of(found | {("a.py", "before"): [7.0, 5.0, 6.0]})
    assert torch["before, s"] == "" and script["before, s"] == 6.0


def test_a_stage_imports_timm_where_a_network_runs():
    """And albumentations where images are augmented: what is finished is skipped without them."""
    code = "import sys, src.training.stage1, src.rebalance.stage2, src.inference.predict, "
    code += "src.inference.evidence; "
    code += "sys.exit(bool({'timm', 'torchvision', 'albumentations'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_imports_nothing_slow(name):
    code = f"""
import runpy, sys
sys.argv = [{name!r}, "--help"]
try:
    runpy.run_path({name!r}, run_name="__main__")
except SystemExit:
    found = [m for m in {SLOW!r} if m in sys.modules]
    print("\\nslow:", *found)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "slow:" and "--config" in done.stdout
