"""Every command's answer to --help and to a wrong flag, in one fresh process, as JSON lines.

first_answers.py JOBS HEAVY...: the folder of the scripts, and the modules that must stay away.
"""

import contextlib
import io
import json
import runpy
import sys

from mnist_ray import cli

jobs, *heavy = sys.argv[1:]


def answer(door: str, name: str, word: str) -> dict[str, object]:
    """What one call prints, its exit code, and the heavy modules that are imported after it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if door == "script":
                sys.argv = [f"{name}.py", word]
                runpy.run_path(f"{jobs}/{name}.py", run_name="__main__")
            else:
                cli.console([name, word])
        except SystemExit as end:
            code = end.code
    imported = sorted(set(heavy) & set(sys.modules))
    return {
        "door": door,
        "name": name,
        "word": word,
        "code": code,
        "imported": imported,
        "out": out.getvalue(),
        "err": err.getvalue(),
    }


for door in ("command", "script"):
    for name in cli.COMMANDS:
        for word in ("--help", "--port=x"):
            print(json.dumps(answer(door, name, word)))
