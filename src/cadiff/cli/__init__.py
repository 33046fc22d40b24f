"""The `cadiff` command: verbs only. Each parses its arguments, calls one function and prints the next command.

    stages.py   the flow from `simulate` to `report`, and `demo` and `run`, which are all of it
    data.py     `data import`, `data doctor` and the other verbs about datasets
    weights.py  `weights describe` and `weights import`
    plan.py     `plan`
    sweep.py    `sweep`
    benchmark.py   `benchmark`
    trace.py    `trace`
    tools.py    `prior train`, `prior adapt`, `presets`, `settings`
    options.py  what they share

Every import of a room happens inside the verb that needs it, so `cadiff --help` answers at once and without torch.
Exit codes: 0 fine, 1 the doctor found something wrong (or a bug: a traceback), 2 something the user can mend (one sentence,
nothing written), 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cadiff import __version__, processes
from cadiff.cli import benchmark, data, plan, stages, tools, weights
from cadiff.cli import sweep as sweeps
from cadiff.cli import trace as traces
from cadiff.errors import UserError
from cadiff.heap import keep_freed_memory

# What the disk refuses is the user's to mend: nothing of ours is at fault, and a traceback would hide the path.
DISK = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grew larger than this disk or this account allows",
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
}
# Such places cannot be used either, and nothing was begun there.
NO_PLACE = {
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "a file is there, where a folder should be",
    errno.ENAMETOOLONG: "the name is too long for this disk",
}
RESUMABLE = ("demo", "run", "prior", "contrast", "attend", "diffuse")


class _Verbs(TyperGroup):
    """Turns the user's mistakes and Ctrl-C into one sentence; bugs pass through with their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            processes.say(f"error: {error}", error)
            raise typer.Exit(2) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_PLACE and error.filename:
                processes.say(
                    f"error: {error.filename}: {NO_PLACE[error.errno]}; choose another place.", error
                )
                raise typer.Exit(2) from None
            if (refusal := _refused_by_disk(error)) is None:
                raise
            processes.say(
                f"error: {refusal}: make room or choose another place. {_how_to_go_on(sys.argv[1:])}", error
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if processes.is_main():
                typer.echo(f"\ninterrupted. {_how_to_go_on(sys.argv[1:])}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Import, check and prepare datasets."
)
prior_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Train image priors.")
app.add_typer(data_app, name="data")
app.add_typer(prior_app, name="prior")
weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Weights that other projects published."
)
app.add_typer(weights_app, name="weights")

# The whole command line in one table, in the order of the help page.
VERBS = {
    "demo": stages.demo,
    "run": stages.run_preset,
    "simulate": stages.simulate,
    "contrast": stages.contrast,
    "attend": stages.attend,
    "diffuse": stages.diffuse,
    "reconstruct": stages.reconstruct,
    "baseline": stages.baseline,
    "evaluate": stages.evaluate,
    "report": stages.report,
    "trace": traces.trace,
    "sweep": sweeps.sweep,
    "plan": plan.plan,
    "benchmark": benchmark.benchmark,
    "presets": tools.presets,
    "settings": tools.settings,
}
DATA_VERBS = {
    "import": data.data_import,
    "formats": data.data_formats,
    "describe": data.data_describe,
    "doctor": data.data_doctor,
    "split": data.data_split,
    "prepare": data.data_prepare,
    "merge": data.data_merge,
}
WEIGHTS_VERBS = {"describe": weights.weights_describe, "import": weights.weights_import}
for _name, _function in VERBS.items():
    app.command(_name)(_function)
for _name, _function in DATA_VERBS.items():
    data_app.command(_name)(_function)
for _name, _function in WEIGHTS_VERBS.items():
    weights_app.command(_name)(_function)
prior_app.command("train")(tools.prior_train)
prior_app.command("adapt")(tools.prior_adapt)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cadiff {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Contrast, Attend and Diffuse: reconstruct the image a person saw from their fMRI.

    The stages in order; each makes one folder and prints the next command:

    `simulate` or `data import` → `contrast` → `attend` → `diffuse` → `reconstruct` → `evaluate` → `report`

    `cadiff demo --out demo` runs all of them on a simulated subject.
    """


def run() -> None:
    """Entry point of the `cadiff` command."""
    # The stages show their own progress; library chatter at start-up would bury it. The caller's choice wins.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.showwarning = _show_warning
    keep_freed_memory()
    if processes.takes_part(together=bool(set(sys.argv[1:2]) & set(RESUMABLE))):
        app(prog_name="cadiff")


_show_any_warning = warnings.showwarning
_warned: set[str] = set()  # Python's own memory of this is lost whenever a library catches warnings


def _show_warning(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """A warning of ours as one sentence, said once, by the main process; those of libraries keep their place in the code."""
    if not issubclass(category, UserWarning) or Path(__file__).parents[1] not in Path(filename).parents:
        _show_any_warning(message, category, filename, lineno, file, line)
    elif processes.is_main() and str(message) not in _warned:
        _warned.add(str(message))
        print(f"warning: {message}", file=file or sys.stderr, flush=True)


def _refused_by_disk(error: Exception) -> str | None:
    """What the disk refused and where, or None for an error of another kind."""
    if isinstance(error, OSError) and error.errno in DISK:
        where = f"{error.filename}: " if error.filename else ""
        return where + DISK[error.errno]
    for number, refusal in DISK.items():  # libraries in Rust (safetensors) pass the number on as text only
        if f"(os error {number})" in str(error):
            return refusal
    return None


def _how_to_go_on(arguments: Sequence[str]) -> str:
    if not arguments or arguments[0] not in RESUMABLE:
        if list(arguments[:2]) == ["data", "import"]:
            return "Run the same command again; subjects that were finished stay and are skipped."
        if list(arguments[:1]) == ["sweep"]:
            return "Run the same command again; what is finished stays and is skipped."
        return "No result was written; run the same command again."
    resumed = arguments if "--resume" in arguments else [*arguments, "--resume"]
    return f"{_where_from(_out_of(arguments))} with: {shlex.join(['cadiff', *resumed])}"


def _out_of(arguments: Sequence[str]) -> Path:
    """What --out says; `demo` has one of its own."""
    for i, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        if name in ("--out", "-o") and (sign or arguments[i + 1 :]):
            return Path(value if sign else arguments[i + 1])
    return Path("demo")


def _where_from(out: Path) -> str:
    for place in (out, *out.glob("*/")):
        if any(place.glob("trainer*/state.json")):
            return "Go on from the last checkpoint"
    runs = [json.loads(record.read_text()) for record in out.glob("*/run.json")]
    if any(run.get("status") == "complete" for run in runs):
        return "Go on after the last finished stage"
    return "There is no checkpoint yet: start from the beginning"
