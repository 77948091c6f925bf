"""`hpnet <verb>`: a table from verbs to the functions that do them. A verb's signature is its command line.

In: arguments. Out: an exit code: 0 fine, 1 done but something was wrong with the input, 2 could not be done, 130
stopped by Ctrl-C. A user's error is one line on standard error.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any, Final

# verb -> (module:function, what it does). Modules are imported when their verb is called, so that --help is quick.
VERBS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("hpnet.demo:demo", "the whole story on drawn people: train, search half-hidden queries, report"),
    "synth": ("hpnet.data.synthetic:synth", "write a drawn data set in Market-1501's layout, with part maps"),
    "doctor": ("hpnet.data.doctor:doctor", "which data set is this, is it whole, what is wrong with it"),
    "occlude": (
        "hpnet.data.occlusion:occlude",
        "write occluded copies of query photos, with the truth about what is seen",
    ),
    "keypoints-to-parts": ("hpnet.data.keypoints:keypoints_to_parts", "draw part maps from body keypoints"),
    "import-labels": ("hpnet.data.labels:import_labels", "bring part labels that others have made into part maps"),
    "teach": ("hpnet.training.teach:teach", "train a teacher, which labels body parts, on human part labels"),
    "label": ("hpnet.training.label:label", "label the body parts in a folder of photos with a teacher"),
    "train": ("hpnet.training.train:train", "train a model by a recipe"),
    "calibrate": ("hpnet.training.calibrate:calibrate", "fit P(same person) on people whom training has not seen"),
    "evaluate": ("hpnet.evaluation.evaluate:evaluate", "judge weights by one of the field's protocols"),
    "embed": ("hpnet.embed:embed", "turn a folder of photos into features"),
    "add": ("hpnet.ingest:add", "put people into a gallery: from photos, a CSV, or footage with boxes"),
    "list": ("hpnet.upkeep:list_people", "who is in a gallery, page by page, or how many"),
    "search": ("hpnet.search:search", "ask a gallery who somebody is"),
    "compare": ("hpnet.search:compare", "are these two photos of the same person"),
    "remove": ("hpnet.upkeep:remove", "remove people from a gallery, by id or by a condition"),
    "expire": ("hpnet.upkeep:expire", "remove everybody last seen before a moment"),
    "compact": ("hpnet.upkeep:compact", "tidy a gallery up; of those who were removed nothing stays"),
    "history": ("hpnet.upkeep:history", "what happened to a gallery; bring an older version back"),
}
_FAILED: Final = 2
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else _FAILED
    if given[0] == "--version":
        print(f"hpnet {metadata.version('hpnet')}")
        return 0
    verb, *rest = given
    if verb not in VERBS:
        print(f"hpnet: no verb {verb!r}; the verbs are {', '.join(VERBS)}", file=sys.stderr)
        return _FAILED
    try:
        return _run(verb, rest)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"hpnet {verb}: {_in_a_line(error)}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print(f"hpnet {verb}: stopped", file=sys.stderr)
        return _INTERRUPTED


def _in_a_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"  # the system's own begins with a number
    return " ".join(str(error).split())


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items()]
    head = "usage: hpnet VERB ...\n\nFind a person again in a sea of photos, even half hidden.\n\nverbs:\n"
    return head + "\n".join(lines) + "\n\n`hpnet VERB --help` tells what a verb takes."


def _run(verb: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError, ArgumentParser

    module, _, name = VERBS[verb][0].partition(":")
    function: Callable[..., int] = getattr(import_module(module), name)
    parameters = inspect.signature(function).parameters
    open_ended = [each.name for each in parameters.values() if each.kind is inspect.Parameter.VAR_POSITIONAL]
    epilog = "Further `--key value` pairs are handed on: --epochs 10 --model.trunk resnet18" if open_ended else None
    parser = ArgumentParser(prog=f"hpnet {verb}", description=VERBS[verb][1], epilog=epilog, exit_on_error=False)
    parser.add_function_arguments(function, as_positional=True)
    arguments = _short_flags(arguments, parameters)
    own, further = _shared_out(arguments, parameters) if open_ended else (arguments, [])
    try:
        values: dict[str, Any] = dict(parser.instantiate(parser.parse_args(own)))
    except ArgumentError as error:
        raise ValueError(f"{error}; see hpnet {verb} --help") from error
    positional = [values.pop(each.name) for each in parameters.values() if _is_positional(each)]
    return function(*positional, *further, **values)


def _shared_out(arguments: Sequence[str], parameters: Any) -> tuple[list[str], list[str]]:
    """The arguments that a verb names itself, and further `--key value` pairs, which it takes as they are."""
    own: list[str] = []
    further: list[str] = []
    taking = own
    for each in arguments:
        name, _, value = each.removeprefix("--").partition("=")
        is_option = each.startswith("--")
        if is_option:
            taking = own if name in (*parameters, "help") else further
        taking.append(each)
        if value or not is_option:
            taking = own  # an option without a value has it next
    return own, further


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _short_flags(arguments: Sequence[str], parameters: Any) -> list[str]:
    """`--json` means `--json true`, and `-k` means `--k` where a parameter is called so."""
    flags = {f"--{name}" for name, each in parameters.items() if each.annotation in ("bool", bool)}
    short = {f"-{name}" for name in parameters if len(name) == 1}
    written = [f"-{each}" if each in short else _underscored(each, parameters) for each in arguments]
    following = [*written, ""][1:]
    return [
        f"{each}=true" if each in flags and after not in ("true", "false") else each
        for each, after in zip(written, following, strict=True)
    ]


def _underscored(argument: str, parameters: Any) -> str:
    """`--dry-run` means `--dry_run` where a parameter is called so."""
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--").replace("-", "_")
    return f"--{name}{equals}{value}" if option.startswith("--") and name in parameters else argument


if __name__ == "__main__":
    sys.exit(main())
