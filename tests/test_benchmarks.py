"""What the benchmarks share (jobs, kept scores); birds_lt and shifts on a few images."""

import subprocess

import pytest

import src.artifacts.work as artifacts
from benchmarks import arguments, birds_methods, results, scan, shift_consistency, throughput
from benchmarks.judged import TOO_SHORT
from benchmarks.pool import run_all
from benchmarks.results import RESULTS, Scores
from src.artifacts.dataset import load_dataset
from src.artifacts.files import write_text
from src.artifacts.work import git_state
from src.config.read import load_config
from src.errors import UserError
from src.prepare.prepare import prepare
from tests.benchmark_kit import row, tiny, work

SCORES = Scores("some", ("row", "seed"), ("accuracy",), ("git",))
SETTINGS = [
    "data.cache=memory",
    "longtail.profile=exp",
    "longtail.ratio=4",
    "bins={many: 10, few: 4}",
    "model.image_size=16",
    "train.epochs=2",
    "train.batch_size=8",
]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_job_that_fails_is_its_own_problem(at_once, capfd):
    found = dict(run_all(work, [1, 2, 3, 4], at_once))
    assert found == {1: "", 2: "two lines", 3: "ZeroDivisionError: three", 4: "head: no images"}
    assert "Traceback" in capfd.readouterr().err  # of 3, so that somebody can mend it


def test_scores_are_kept_and_measuring_again_replaces(tmp_path):
    out = tmp_path / "RESULTS.md"
    assert SCORES.read(out).empty and SCORES.keep([], out).empty
    assert not SCORES.path(out).exists()
    SCORES.keep([{"row": "ce", "seed": "0", "accuracy": 0.5, "git": "a", "nll": 3.0}], out)
    kept = SCORES.keep(
        [
            {"row": "ce", "seed": "0", "accuracy": 0.25, "git": "b"},
            {"row": "bbn", "seed": "0", "accuracy": None, "git": "b"},
        ],
        out,
    )
    assert SCORES.path(out) == tmp_path / "scores" / "some.csv"
    assert kept["row"].tolist() == ["bbn", "ce"] and kept["git"].tolist() == ["b", "b"]
    assert kept["accuracy"].isna().tolist() == [True, False] and kept["accuracy"][1] == 0.25
    before = SCORES.path(out).read_bytes()
    assert SCORES.keep([], out).equals(kept) and SCORES.path(out).read_bytes() == before


def test_changed_settings_do_not_stand_among_those_of_the_schedule(tmp_path):
    parser = arguments.parser("", "some.yaml", ["ce", "bbn"], ["ce"])
    own = ["--set", "train.epochs=1"]
    with pytest.raises(UserError, match="--set train.epochs=1 changes .* --out"):
        arguments.parse(parser, own)
    elsewhere = arguments.parse(parser, [*own, "--out", str(tmp_path / RESULTS.name)])
    assert elsewhere.out.parent == tmp_path and elsewhere.methods == ["ce"]
    assert arguments.parse(parser, []).out == RESULTS


def test_every_method_on_birds_is_one_that_the_product_takes():
    config = str(RESULTS.parents[1] / "configs" / "birds_lt_plain.yaml")
    for name in birds_methods.BIRDS:
        settings = birds_methods.job_config(birds_methods.Job(config, name, ("0",)))
        assert settings.train.epochs == birds_methods.SHORT["train.epochs"]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    out = tiny(tmp_path, monkeypatch)
    prepare(load_config("tiny.yaml", SETTINGS))
    return out


def judged(cell: str) -> bool:
    """Two epochs from random weights are too short for what is behind."""
    return cell == TOO_SHORT or (" ± " in cell and not cell.startswith("-"))


def test_methods_are_compared_with_cross_entropy_on_the_same_images(prepared, capsys):
    def run(*args):
        common = ["--config", "tiny.yaml", "--folds", "0", "2", "--out", str(prepared)]
        birds_methods.main([*common, *args, "--set", *SETTINGS])
        return prepared.read_text()

    text = run("--methods", "balanced_softmax")
    assert "by hand, above" in text and "--methods ce balanced_softmax`" in text
    assert row(text, "cross-entropy")[-1] == ""
    for title in ("balanced softmax", "CE + NCM", "CE + τ-norm, τ from held-out images"):
        assert judged(row(text, title)[-1])
    held_out = sum(len(load_dataset("tiny").held_out(k)) for k in (0, 2))
    assert f"folds 0 2 held out ({held_out} images)" in text
    capsys.readouterr()
    again = run("--methods", "kt")  # in parts: the row of before is still there
    assert "compare-ce" in (said := capsys.readouterr().out) and "compare-kt" in said
    assert row(again, "balanced softmax") == row(text, "balanced softmax")
    assert judged(row(again, "knowledge transfer (KT)")[-1])


def test_shift_consistency_takes_experiments_that_are_there(prepared):
    common = ["--config", "tiny.yaml", "--out", str(prepared), "--set", *SETTINGS]
    shift_consistency.main(common)
    first = prepared.read_text()
    for title in ("plain", "blur, not trained", "blur"):
        assert all(0 <= float(cell) <= 1 for cell in row(first, title)[1:])
    shift_consistency.main([*common, "--experiments", "tiny-shift-plain", "tiny-shift-blur"])
    again = prepared.read_text()
    assert [row(again, t) for t in ("plain", "blur")] == [row(first, t) for t in ("plain", "blur")]


def test_a_commit_is_marked_where_code_has_changed_not_where_results_have(tmp_path, monkeypatch):
    files = ("src/artifacts/work.py", "benchmarks/RESULTS.md", "benchmarks/scores/some.csv")
    for name in files:
        write_text(tmp_path / name, "one")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / files[0]))
    clean = git_state()
    assert len(clean) == 12
    for name in files[1:]:
        write_text(tmp_path / name, "two")
    assert git_state() == clean
    write_text(tmp_path / files[0], "two")
    assert git_state() == f"{clean}+changes"


def test_where_a_section_is_written_is_no_part_of_the_command(monkeypatch):
    command = ["python", "benchmarks/some.py", "--out", "/tmp/a.md", "--fold", "1"]
    monkeypatch.setattr(results.sys, "orig_argv", command)
    assert results.provenance().startswith("`python benchmarks/some.py --fold 1` · commit ")


@pytest.mark.parametrize("name", ["shipped", "bare", "plain", "timm"])  # "compiled" takes minutes
def test_each_loop_trains_on_the_same_images(prepared, name):
    assert throughput.arm(name, "tiny.yaml", [*SETTINGS, "data.workers=0"], 2) > 0


def test_the_scan_and_the_bare_work_in_it_find_the_same(prepared, tmp_path):
    scan.main(["--config", "tiny.yaml", "--set", *SETTINGS, "--rounds", "1", "--workers", "1",
               "--out", str(prepared)])  # fmt: skip
    assert "scan over bare: " in prepared.read_text()
