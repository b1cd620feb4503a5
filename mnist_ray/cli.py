"""The commands, as `mnist-ray COMMAND …` and `python jobs/COMMAND.py …` run them.

Nothing heavy is imported before the settings are right: `--help` and a wrong flag answer at once.
"""

import difflib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mnist_ray
from mnist_ray import __version__
from mnist_ray.errors import SettingsError, printable
from mnist_ray.settings import (
    DrawSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    PredictSettings,
    PushSettings,
    ReportSettings,
    SearchSettings,
    ServeSettings,
    help,
    main,
)
from mnist_ray.settings.text import ENDINGS

PROGRAM = "mnist-ray"


def search(settings: SearchSettings) -> int:
    """Search for the best network, then fine-tune and publish it."""
    from mnist_ray.search_job.job import search  # noqa: PLC0415 (seconds at start)

    return search(settings).exit_code


def finetune(settings: FinetuneSettings) -> int:
    """Fine-tune a run's best network in stages and publish it as ONNX."""
    from mnist_ray.finetune_job.job import finetune  # noqa: PLC0415 (seconds at start)

    return finetune(settings).exit_code


def evaluate(settings: EvaluateSettings) -> None:
    """Evaluate an ONNX model on a data set."""
    model = mnist_ray.load_model(settings.model)
    part = model.images(settings.dataset, settings.part, settings.data_dir)
    result = model.judge(part)
    low, high = result.interval
    print(f"accuracy  {result.accuracy:.4%} of {result.n} images of {part.name} {part.part}")
    print(f"errors    {result.n - result.right}")
    print(f"interval  {low:.4%} to {high:.4%} (95 %, Wilson)")
    single = type(model.session)(model.content, settings.model, threads=1)
    latency = single.latency_ms(part.images[0])
    print(f"latency   {latency:.3f} ms an image (one at a time, 1 thread, median of 100)")
    for label, accuracy in zip(part.classes, result.per_class, strict=False):
        if not math.isnan(accuracy):  # there are images of it
            print(f"class     {label}  {accuracy:.4%}")


def predict(settings: PredictSettings) -> int:
    """Classify pictures with a published model."""
    if not settings.pictures:
        raise SettingsError("name at least one picture after the model")
    model, code = mnist_ray.load_model(settings.model), 0
    files = list(_files(settings.pictures))
    for path in files:
        try:
            found = model.predict(path)
        except SettingsError as error:  # the other pictures are answered all the same
            if len(files) == 1:
                raise
            print(printable(str(error)), file=sys.stderr, flush=True)
            code = SettingsError.exit_code
            continue
        shown = f"{found.label}  {found.probability:.4f}" if found.label else "-"
        shown += "" if found.known else f"  {found.reason}"
        print(f"{printable(path)}  {shown}", flush=True)
    return code


def _files(pictures: Sequence[str]) -> Iterator[str]:
    """The picture files; of a folder those within it, by name."""
    for path in map(Path, pictures):
        if not os.path.isdir(path):
            yield str(path)
            continue
        try:
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        except OSError as error:
            raise SettingsError(f"{path}: the folder cannot be read: {error.strerror}") from error
        if not inside:
            raise SettingsError(
                f"{path}: the folder holds no picture; expected {'/'.join(ENDINGS)}"
            )
        yield from map(str, inside)


def report(settings: ReportSettings) -> None:
    """Make a run's page again, or compare several runs on one."""
    from mnist_ray.report import make  # noqa: PLC0415 (seconds at start)

    make(settings.runs, settings.out, settings.png, settings.data_dir)


def draw(settings: DrawSettings) -> None:
    """Serve a web page to draw on; the model runs in the browser."""
    from mnist_ray import draw  # noqa: PLC0415 (seconds at start)

    if settings.export is None:
        draw.serve(settings.model, settings.port)
    else:
        draw.export(settings.model, settings.export)
        print(f"page: {settings.export}/index.html")


def serve(settings: ServeSettings) -> None:
    """Answer pictures over HTTP with a published model."""
    try:
        from mnist_ray.serve import server  # noqa: PLC0415 (optional package)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"serve needs the package {error.name}: pip install 'mnist_ray[serve]'"
        ) from error
    server.serve(settings.model, settings.host, settings.port)


def export(settings: ExportSettings) -> None:
    """Write a published model as a folder for Hugging Face or Triton."""
    _handover().export(settings.run, settings.to, settings.out)
    print(f"{settings.to}: {settings.out}")


def push(settings: PushSettings) -> None:
    """Upload a published model to the Hugging Face Hub."""
    print(_handover().push(settings.run, settings.repo))


def _handover() -> Any:
    from mnist_ray import handover  # noqa: PLC0415 (seconds at start)

    return handover


class Command(NamedTuple):
    """A command: the type of its settings and the function that does it."""

    settings: type[Any]
    run: Callable[[Any], int | None]


COMMANDS: dict[str, Command] = {
    "search": Command(SearchSettings, search),
    "finetune": Command(FinetuneSettings, finetune),
    "evaluate": Command(EvaluateSettings, evaluate),
    "predict": Command(PredictSettings, predict),
    "report": Command(ReportSettings, report),
    "draw": Command(DrawSettings, draw),
    "serve": Command(ServeSettings, serve),
    "export": Command(ExportSettings, export),
    "push": Command(PushSettings, push),
}


def job(name: str) -> NoReturn:
    """Runs the command of `jobs/NAME.py` with the flags of this process, and exits."""
    _list_part(name, sys.argv[1:])
    main(*COMMANDS[name])


def console(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `mnist-ray` with `argv` or the words of this process, and exits."""
    name, *flags = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        _list_part(name, flags)
        main(*COMMANDS[name], argv=flags, program=f"{PROGRAM} {name}")
    if name in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        sys.exit(0)
    close = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f" (did you mean {close[0]}?)" if close else f"; expected one of {', '.join(COMMANDS)}"
    print(f"{PROGRAM}: there is no command {name!r}{hint}", file=sys.stderr)
    sys.exit(SettingsError.exit_code)


def _list_part(command: str, flags: Sequence[str]) -> None:
    """Answers `search … --help-space NAME` and its like, and exits."""
    known = {f"--help-{part}": part for part in help.PARTS}
    place = next((n for n, word in enumerate(flags) if word.partition("=")[0] in known), None)
    if command != "search" or place is None:
        return
    from mnist_ray.search_job.part_options import part_options  # noqa: PLC0415 (seconds at start)

    flag, equals, name = flags[place].partition("=")
    name = name if equals else "".join(flags[place + 1 : place + 2])
    part = known[flag]
    try:
        print(help.part_text(part, name, part_options(part, name)))
    except SettingsError as error:
        print(f"{PROGRAM} {command}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def _overview() -> str:
    lines = "\n".join(f"  {name:10}{inspect.getdoc(do.run)}" for name, do in COMMANDS.items())
    return f"""usage: {PROGRAM} [--help] [--version] COMMAND ...

commands:
{lines}

{PROGRAM} COMMAND --help lists the options of a command."""
