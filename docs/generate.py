"""Writes the pages that repeat the code: options, hyperparameters, parts, Python API.

python docs/generate.py

The pages are committed, so that a code host shows them. A test compares them with the code.
"""

import html
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import mnist_ray  # noqa: E402
from mnist_ray import cli, hyperparameters  # noqa: E402
from mnist_ray.data import Split  # noqa: E402
from mnist_ray.export.session import Evaluation  # noqa: E402
from mnist_ray.hyperparameters import REQUIRED, Hyperparameter  # noqa: E402
from mnist_ray.results import Prediction  # noqa: E402
from mnist_ray.run.best import Best, Confirmed  # noqa: E402
from mnist_ray.run.tuned import Tuned  # noqa: E402
from mnist_ray.search_job.part_options import part_options  # noqa: E402
from mnist_ray.settings import help  # noqa: E402
from mnist_ray.settings.text import one_line  # noqa: E402
from mnist_ray.spaces import SPACES, find  # noqa: E402
from mnist_ray.study.pruners import NAMES, factory  # noqa: E402
from mnist_ray.study.samplers import SAMPLERS  # noqa: E402

NOTE = "\n\n<!-- Made by `python docs/generate.py`: change the code, then run it again. -->\n"


def pages() -> dict[str, str]:
    """Name of each page and its text."""
    made = {
        "options.md": options,
        "part-options.md": own_options,
        "hyperparameters.md": hyperparameter_contract,
        "api.md": api,
    }
    return {name: "\n".join(page()).rstrip() + NOTE for name, page in made.items()}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    cell = [[each.replace("|", "\\|") for each in line] for line in lines]
    return [*("| " + " | ".join(line) + " |" for line in cell), ""]


def code(text: str) -> str:
    """As code; renderers disagree about a | between backticks in a table."""
    if "|" in text:
        return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"
    return f"`{text}`" if text else ""


# ---- options

OPTION = ("option", "value", "default", "meaning")
EXIT_CODES = (
    ("0", "The work is done."),
    ("1", "The settings were right, but the work failed. The last line says why."),
    ("2", "A flag, a file or a picture is wrong. The line names it, and what is allowed."),
    ("130", "Ctrl-C, SIGTERM or SIGHUP ended it. A search names the command that goes on."),
    ("141", "Nobody reads its output any more, as behind a pipe to `head`."),
)
VARIABLES = (
    ("MNIST_RAY_DATA", "The folder of the built-in data sets, if `--data-dir` is not given."),
    ("MNIST_RAY_TOKEN", "The secret that `mnist-ray serve` asks for; at least 16 characters."),
    (
        "MNIST_RAY_STORAGE_RETRY_SECONDS",
        "So long a storage that does not answer is asked again (default: 60). It also reaches the "
        "workers of a Ray that is joined.",
    ),
    (
        "MNIST_RAY_CUDA_GRAPHS",
        "`0`: a training step on a GPU is not captured as a CUDA graph. It also reaches the "
        "workers of a Ray that is joined.",
    ),
    (
        "XDG_CACHE_HOME",
        "The folder in whose `mnist_ray` decoded pictures and compiled code are kept "
        "(default: `~/.cache`).",
    ),
    (
        "RAY_ADDRESS",
        "The Ray to join, as `HOST:PORT`; `local` starts one. Without it a Ray of yours that runs "
        "on this machine is joined, else one is started.",
    ),
    (
        "RAY_API_SERVER_ADDRESS",
        "The job server for `ray job` and for the second job, if it is not the one that Ray names.",
    ),
    ("RAY_AUTH_MODE", "`token`: every Ray process asks for [the token](cluster.md#the-token)."),
    (
        "AWS_PROFILE, AWS_ENDPOINT_URL, …",
        "See [object stores](cluster.md#object-stores). A Ray that is joined needs them when it is "
        "started.",
    ),
)


def options() -> list[str]:
    lines = [
        "# Options",
        "",
        "Every option of every command. A flag `--max-epochs 4` is `max_epochs=4` in Python and",
        "`max_epochs: 4` in a YAML file for `--config`. `--no-` before a switch turns it off.",
        "",
        "```bash",
        "mnist-ray search --help",
        "mnist-ray search --config my.yaml --trials 100    # a flag wins over the file",
        "```",
        "",
    ]
    for name, command in cli.COMMANDS.items():
        lines += [f"## mnist-ray {name}", "", inspect.getdoc(command.settings) or "", ""]
        for group in help.groups(command.settings):
            if group.title:
                lines += [f"### {group.title.capitalize()}", "", group.purpose, ""]
            lines += table(
                ("option", "value", "default", "meaning"), map(option_row, group.options)
            )
        lines += ["```bash"]
        lines += [f"mnist-ray {name} {e}" for e in help.EXAMPLES[command.settings.__name__]]
        lines += ["```", ""]
    lines += ["## Exit codes", "", *table(("code", "meaning"), EXIT_CODES)]
    rows = [(code(name), meaning) for name, meaning in VARIABLES]
    return [*lines, "## Environment variables", "", *table(("variable", "meaning"), rows)]


def option_row(option: help.Option) -> tuple[str, ...]:
    name = option.flags[0] if option.flags else option.value
    value = code(option.value if option.flags else "") if option.value else "switch"
    return code(name), value, option.default, option.meaning + "."


def own_options() -> list[str]:
    lines = [
        "# Options of spaces, samplers and schedulers",
        "",
        f"The samplers' options are those of Optuna {version('optuna')}.",
        "",
        "`--space-args`, `--sampler-args` and `--scheduler-args` take these as `KEY=VALUE`.",
        "`mnist-ray search --help-space NAME` lists those of a space, also of your own; so do",
        "`--help-sampler` and `--help-scheduler`.",
        "",
        "```bash",
        "mnist-ray search --help-space convnet",
        "mnist-ray search --dataset digits --space-args max_width=16 --dry-run",
        "```",
        "",
    ]
    named: list[tuple[str, str, Callable[..., Any]]] = [
        *(("space", name, find(name)) for name in SPACES),
        *(("sampler", name, SAMPLERS[name][0]) for name in SAMPLERS),
        *(("scheduler", name, factory(name)) for name in NAMES),
    ]
    last = ""
    for part, name, _ in named:
        lines += [f"## {part.capitalize()}s", ""] if part != last else []
        last = part
        found = part_options(part, name)
        lines += [f"### `{name}`", ""]
        rows = ((code(o.name), code(o.value), o.default, o.meaning + ".") for o in found)
        lines += table(OPTION, rows) if found else ["It has no options of its own.", ""]
    return lines


# ---- hyperparameters


def hyperparameter_contract() -> list[str]:
    h = hyperparameters
    lines = [
        "# Hyperparameters: the contract of a space",
        "",
        "A search space returns a flat dict. The dict alone rebuilds the network and its training,",
        "so it holds only values that JSON can hold. Training reads the keys below. A missing key",
        "takes its default; a wrong value is refused before anything starts. Your own network may",
        "read further keys.",
        "",
        "```python",
        "from mnist_ray import hyperparameters",
        "",
        'hp = {"optimizer": "sgd", "lr": 0.1, "batch_size": 128}',
        'assert hyperparameters.training(hp)["momentum"] == 0.9  # a default',
        "```",
        "",
        "`model` names the network: " + ", ".join(map(code, h.NETWORK_KEYS)) + ", or",
        "`module:function` for your own ([how](own-parts.md)).",
        "",
        "## Training",
        "",
        "Every network.",
        "",
        *keys(h.TRAINING_KEYS),
        "## Augmentation",
        "",
        "`augment` takes a name, a name with options as `affine:degrees=15,shift=3`, or your own",
        "`module:function` ([how](own-parts.md#augmentation)).",
        "",
        *table(
            ("name", "option", "default", "allowed", "meaning"),
            [
                (code(name), code(o.name), code(str(o.default)), o.expected, o.meaning)
                for name, found in h.AUGMENTATIONS.items()
                for o in found
            ],
        ),
        "## Data",
        "",
        "`data.hyperparameters()` of a space's second argument has these.",
        "",
        *keys((*h.DATA_KEYS, *h.NORMALIZATION_KEYS)),
        "## Networks",
        "",
    ]
    for name, found in h.NETWORK_KEYS.items():
        lines += [f"### `{name}`", "", *keys(found)]
    return lines


def keys(found: Iterable[Hyperparameter]) -> list[str]:
    rows = []
    for key in found:
        required = key.default is REQUIRED
        default = "required" if required else code(str(key.default).replace("()", "[]"))
        of = f" ({', '.join(key.of)})" if key.of else ""
        kind = f"list of {key.kind.__name__}" if key.many else key.kind.__name__
        rows.append((code(key.name), kind, default, key.expected, key.meaning + of))
    return table(("key", "type", "default", "allowed", "meaning"), rows)


# ---- Python API


def api() -> list[str]:
    lines = [
        "# Python API",
        "",
        "```python",
        "import mnist_ray as mr",
        "",
        'run = mr.search(dataset="digits", trials=4, max_epochs=2, storage="runs", name="api")',
        "print(run.best.value)",
        "```",
        "",
        "Every option of a command is a keyword: see [Options](options.md). Importing `mnist_ray`",
        "takes no time: a name is loaded when it is first used.",
        "",
    ]
    functions: list[Callable[..., Any]] = [
        mnist_ray.search,
        mnist_ray.finetune,
        mnist_ray.open_run,
        mnist_ray.load_model,
    ]
    classes = [mnist_ray.Run, Best, Confirmed, Tuned, mnist_ray.Model, Prediction, Evaluation]
    classes += [mnist_ray.Images, Split, mnist_ray.DataShape]
    classes += [mnist_ray.SearchSettings, mnist_ray.FinetuneSettings]
    classes += [mnist_ray.MnistRayError, mnist_ray.SettingsError, mnist_ray.WorkError]
    lines += ["## Functions", ""]
    for function in functions:
        lines += [f"### `{function.__name__}{signature(function)}`", "", *docstring(function)]
    lines += ["## Classes", ""]
    for cls in classes:
        lines += [f"### `{cls.__name__}`", "", *docstring(cls), *fields(cls), *members(cls)]
    return lines


def fields(cls: type[Any]) -> list[str]:
    """The fields of a dataclass that have a text below them; settings have a page of their own."""
    found = help.texts(cls) if cls is mnist_ray.Images else {}
    listed = [f"- `{name}`: {meaning}" for name, meaning in found.items()]
    return ["Attributes:", "", *listed, ""] if listed else []


def members(cls: type[Any]) -> list[str]:
    """The public methods and properties that a class defines itself."""
    lines = []
    for name, member in vars(cls).items():
        called = getattr(member, "__func__", member)  # of a class method
        function = getattr(member, "fget", None) or getattr(member, "func", None) or called
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        call = signature(function) if function is called else ""
        lines += [f"#### `{cls.__name__}.{name}{call}`", "", *docstring(function)]
    return lines


def signature(function: Callable[..., Any]) -> str:
    found = inspect.signature(function)
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in found.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def docstring(thing: Any) -> list[str]:
    """A Google-style docstring as Markdown."""
    text = inspect.cleandoc(thing.__doc__ or "")
    parts = re.split(r"^(Args|Returns|Raises|Attributes|Example):\n", text, flags=re.MULTILINE)
    lines = [parts[0].replace("::\n", ":\n").strip(), ""]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = textwrap.dedent(body).strip()
        if title == "Example":
            source = "\n".join(re.findall(r"^(?:>>>|\.\.\.) (.*)", body, re.MULTILINE))
            lines += ["```python", source, "```", ""]
        elif title == "Returns":
            lines += [f"Returns: {one_line(body)}", ""]
        else:
            found = re.findall(r"^(\w+): (.*(?:\n+[ ]+.*)*)", body, re.MULTILINE)
            lines += [f"{title.replace('Args', 'Arguments')}:", ""]
            lines += [f"- `{name}`: {one_line(meaning)}" for name, meaning in found]
            lines += [""]
    return lines


if __name__ == "__main__":
    for page, content in pages().items():
        (DOCS / page).write_text(content, encoding="utf-8")
