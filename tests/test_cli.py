from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from hpnet import cli
from hpnet.cli import VERBS, main

ROOT = Path(__file__).parents[1]
# Each verb with so few arguments that something is missing which its line must name.
UNUSABLE = {
    "doctor": ["gone"],
    "keypoints-to-parts": ["gone.npz", "out"],
    "occlude": ["gone", "out", "--part_maps", "gone"],
    "import-labels": ["gone", "out"],
    "teach": ["gone.yaml"],
    "label": ["gone.safetensors", "gone", "out"],
    "train": ["gone.yaml"],
    "evaluate": ["gone.safetensors", "--protocol", "market1501", "--root", "gone"],
    "embed": ["gone.safetensors", "gone", "out.npz"],
    "add": ["gone", "--gallery", "g"],
    "search": ["gone.jpg", "--gallery", "gone"],
    "compare": ["gone.jpg", "gone.jpg"],
    "list": ["gone"],
    "remove": ["gone", "--ids", "[1]"],
    "expire": ["gone", "30d"],
    "compact": ["gone"],
    "history": ["gone"],
}


def function_of(verb: str) -> Any:
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(import_module(module), name)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


# --- the table


def test_the_designs_verbs_are_there() -> None:
    promised = {"demo", "synth", "doctor", "keypoints-to-parts", "teach", "label", "train", "evaluate", "embed"}
    assert promised | {"add", "search", "compare", "list", "remove", "expire", "compact", "history"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_documented_function(verb: str) -> None:
    function = function_of(verb)
    # A function called `list` would hide Python's own.
    assert function.__name__ == {"list": "list_people"}.get(verb, verb.replace("-", "_"))
    told = inspect.getdoc(function)
    assert told
    parameters = inspect.signature(function).parameters
    assert "json" in parameters
    assert parameters["json"].default is False
    arguments = told.partition("Args:\n")[2]
    for name in parameters:
        assert f"{name}: " in arguments, f"{verb} does not say what {name} is"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_helps(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, flag])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: hpnet {verb}" in told
    for name in inspect.signature(function_of(verb)).parameters:
        assert name in told or name == "overrides"
    assert "--json" in told


def test_train_tells_that_the_recipe_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--key value" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb: str) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert any(f"hpnet {verb}" in page.read_text(encoding="utf-8") for page in pages), f"no page shows `hpnet {verb}`"


# --- what main does before and around a verb


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_the_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {verb} " in told for verb in VERBS)


def test_without_a_verb_help_is_shown_and_nothing_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "verbs:" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hpnet {metadata.version('hpnet')}\n"


def test_an_unknown_verb_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "'fly'" in said.err
    assert "search" in said.err


@pytest.mark.parametrize("verb", UNUSABLE)
def test_a_users_error_is_one_line(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, *UNUSABLE[verb], "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"hpnet {verb}: ")
    assert said.err.count("\n") == 1
    assert "gone" in said.err or "compact weights" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed"], "weights"),
        (["embed", "a", "b"], "out"),
        (["embed", "a", "b", "c", "stray"], "stray"),
        (["embed", "a", "b", "c", "--colour", "red"], "--colour"),
        (["embed", "a", "b", "c", "--batch_size", "many"], "many"),
        (["train"], "recipe"),
        (["search", "a.jpg"], "gallery"),
    ],
)
def test_wrong_arguments_are_one_line_too(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"hpnet {arguments[0]}: ")
    assert words in said
    assert f"hpnet {arguments[0]} --help" in said


# --- how arguments reach a verb


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a verb made for this test was called with."""
    seen: list[tuple[Any, ...]] = []

    def probe(photo: Path, other: Path, *, k: int = 10, part_share: float = 0.5, json: bool = False) -> int:
        """Do nothing."""
        seen.append((photo, other, k, part_share, json))
        return 7

    def open_ended(recipe: Path, *overrides: str, resume: bool = False, json: bool = False) -> int:
        """Do nothing."""
        seen.append((recipe, overrides, resume, json))
        return 0

    def nothing_needed(*, json: bool = False) -> int:
        """Do nothing."""
        seen.append((json,))
        return 0

    for function in (probe, open_ended, nothing_needed):
        monkeypatch.setattr(cli, function.__name__, function, raising=False)
        monkeypatch.setitem(VERBS, function.__name__, (f"hpnet.cli:{function.__name__}", "does nothing"))
    return seen


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["a", "b"], (Path("a"), Path("b"), 10, 0.5, False)),
        (["a", "b", "-k", "3"], (Path("a"), Path("b"), 3, 0.5, False)),
        (["--k=3", "a", "b"], (Path("a"), Path("b"), 3, 0.5, False)),
        (["a", "b", "--json"], (Path("a"), Path("b"), 10, 0.5, True)),
        (["--json", "a", "b"], (Path("a"), Path("b"), 10, 0.5, True)),
        (["a", "--json", "b"], (Path("a"), Path("b"), 10, 0.5, True)),
        (["--json", "true", "a", "b"], (Path("a"), Path("b"), 10, 0.5, True)),
        (["--json", "false", "a", "b"], (Path("a"), Path("b"), 10, 0.5, False)),
        (["--json=false", "a", "b"], (Path("a"), Path("b"), 10, 0.5, False)),
        (["a", "b", "--json", "--part_share", "1"], (Path("a"), Path("b"), 10, 1.0, True)),
        (["a", "b", "--part-share", "1"], (Path("a"), Path("b"), 10, 1.0, False)),
        (["--part-share=1", "a-b", "b"], (Path("a-b"), Path("b"), 10, 1.0, False)),
        (["a", "b", "-k", "-3"], (Path("a"), Path("b"), -3, 0.5, False)),
        (["a b/Straße", "[x]*"], (Path("a b/Straße"), Path("[x]*"), 10, 0.5, False)),
    ],
)
def test_arguments_arrive(written: list[str], expected: tuple[Any, ...], calls: list[tuple[Any, ...]]) -> None:
    assert main(["probe", *written]) == 7
    assert calls == [expected]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["r.yaml"], (Path("r.yaml"), (), False, False)),
        (["r.yaml", "--resume", "--json"], (Path("r.yaml"), (), True, True)),
        (
            ["r.yaml", "--out", "runs/a", "--resume", "--epochs=3"],
            (Path("r.yaml"), ("--out", "runs/a", "--epochs=3"), True, False),
        ),
        (["--seed", "-1", "r.yaml", "--json"], (Path("r.yaml"), ("--seed", "-1"), False, True)),
        (["--resume", "r.yaml"], (Path("r.yaml"), (), True, False)),
        (["--reid", "d", "r.yaml"], (Path("r.yaml"), ("--reid", "d"), False, False)),
    ],
)
def test_further_pairs_are_handed_on(
    written: list[str], expected: tuple[Any, ...], calls: list[tuple[Any, ...]]
) -> None:
    assert main(["open_ended", *written]) == 0
    assert calls == [expected]


def test_a_verb_may_need_nothing(calls: list[tuple[Any, ...]]) -> None:
    assert main(["nothing_needed"]) == 0
    assert main(["nothing_needed", "--json"]) == 0
    assert calls == [(False,), (True,)]


def test_arguments_come_from_the_command_line(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hpnet", "probe", "a", "b"])
    assert main() == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("photo.jpg:\n  damaged"), 2, "photo.jpg: damaged"),
        (FileNotFoundError(2, "No such file", "x.jpg"), 2, "x.jpg: No such file"),
        (OSError("no room"), 2, "no room"),
        (FloatingPointError("step 3: a loss is not finite"), 2, "step 3: a loss is not finite"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*, json: bool = False) -> int:
        raise error

    monkeypatch.setattr(cli, "fail", fail, raising=False)
    monkeypatch.setitem(VERBS, "fail", ("hpnet.cli:fail", "fails"))
    assert main(["fail"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"hpnet fail: {line}\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, json: bool = False) -> int:
        raise AttributeError("a bug")

    monkeypatch.setattr(cli, "fail", fail, raising=False)
    monkeypatch.setitem(VERBS, "fail", ("hpnet.cli:fail", "fails"))
    with pytest.raises(AttributeError):
        main(["fail"])


# --- quick to start


HEAVY = ("torch", "lance", "pyarrow", "numpy", "PIL", "rich", "jsonargparse", "yaml", "safetensors")


@pytest.mark.parametrize("code", ["import hpnet", "import hpnet.cli; hpnet.cli.main(['--help'])"])
def test_heavy_libraries_wait_until_they_are_used(code: str) -> None:
    loaded = json.loads(python(f"{code}\nimport sys, json; print(json.dumps(list(sys.modules)))").splitlines()[-1])
    assert not set(HEAVY) & set(loaded)


def test_the_face_knows_its_names() -> None:
    import hpnet

    for name in hpnet.__all__:
        assert getattr(hpnet, name).__name__ == name
    assert dir(hpnet) == hpnet.__all__
    assert {"Embedder", "Gallery", "HPNet", "Part", "PartFeatures", "part_distance"} <= set(hpnet.__all__)
    with pytest.raises(AttributeError, match="Unicorn"):
        _ = hpnet.Unicorn


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hpnet", "fly"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hpnet: no verb 'fly'")
