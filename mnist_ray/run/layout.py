"""Every file and folder of a run's directory by its name, and back. No other module spells them."""

import re

RUN = "run.json"
JOURNAL = "study.journal"  # the Optuna study, unless --study keeps it elsewhere
TRIALS = "trials.parquet"  # one row a settled trial
HISTORY = "history.parquet"  # one row a trial and epoch
CONFIRMED = "confirmed.parquet"  # one row a retraining of --confirm
REPORT = "report.html"
START = "start.onnx"  # a copy of the file that --onnx named, from which a resume reads
MODEL = "model.onnx"
PICTURE = "picture.onnx"  # from a picture as people have it to its class
SMALLER = ("int8", "fp16")  # kinds of `smaller_model`
MANIFEST = "model.json"  # names the model's file and its SHA-256; written last
PREDICTIONS = "predictions.parquet"  # the published model's logits on the test images
CARD = "README.md"

BEST = "best"  # the files of the best epoch of the best trial
BEST_NETWORK = f"{BEST}/model.safetensors"
BEST_TREES = f"{BEST}/model.txt"  # of a run of LightGBM
BEST_STATE = f"{BEST}/state"  # of a training function of one's own
BEST_DESCRIBED = f"{BEST}/state.json"  # its trial, epoch, hyperparameters and SHA-256
TUNED = "tuned.json"  # the result of --finetune-with: names a `tuned_state`; written last

TUNE = "tune"
CHECKPOINTS = f"{TUNE}/checkpoints"
ERRORS = f"{TUNE}/errors"
CONFIRM = "confirm"  # the retrainings of --confirm: their study and checkpoints
FINETUNE = "finetune"
TENSORBOARD = "tensorboard"

# In a stage's folder.
STAGE_STATE = "training.safetensors"  # to go on from; gone when the stage is done
STAGE_NETWORK = "model.safetensors"
STAGE_CURVE = "curve.parquet"
# In the folder of a second function of one's own; also a STAGE_CURVE.
OWN_LATEST = "latest.state"
OWN_BEST = "best.state"
OWN_ERROR = "error.txt"


def smaller_model(kind: str) -> str:
    """The published model in another arithmetic.

    Args:
        kind: One of SMALLER.
    """
    return f"model.{kind}.onnx"


def trial_folder(number: int) -> str:
    """The folder of a trial's checkpoints, while it runs."""
    return f"{CHECKPOINTS}/{number:05d}"


def error_file(number: int) -> str:
    """The traceback of a trial that failed."""
    return f"{ERRORS}/{number:05d}.txt"


def tensorboard_folder(number: int) -> str:
    """The folder of a trial's event files."""
    return f"{TENSORBOARD}/{number:05d}"


def trial_of(name: str) -> int | None:
    """The number of the trial that a file or folder belongs to; None for all others."""
    match = re.match(rf"(?:{CHECKPOINTS}|{ERRORS}|{TENSORBOARD})/(\d+)\b", name)
    return int(match[1]) if match else None


def stage_folder(number: int, member: int = 1, *, twin: bool = False) -> str:
    """A stage's folder.

    Args:
        number: The stage's.
        member: The place of the network in a committee, from 1.
        twin: Of its twin, which is trained to calibrate it.
    """
    parts = [FINETUNE, *(["twin"] if twin else []), *([f"member-{member}"] if member > 1 else [])]
    return "/".join([*parts, f"stage-{number}"])


def own_folder(key: str) -> str:
    """The folder of a second function of one's own. key: tells it, and its start, from others."""
    return f"{FINETUNE}/own-{key}"


def tuned_state(sha256: str) -> str:
    """The file of a state that a second function of one's own made."""
    return f"tuned-{sha256[:16]}.state"


def is_tuned_state(name: str) -> bool:
    """Whether a file is a `tuned_state`."""
    return bool(re.fullmatch(r"tuned-[0-9a-f]{16}\.state", name))


def stage_of(name: str) -> tuple[int, int] | None:
    """Number and member of the stage that a file belongs to; None for all others."""
    match = re.match(rf"{FINETUNE}/(?:member-(\d+)/)?stage-(\d+)\b", name)
    return (int(match[2]), int(match[1] or 1)) if match else None


def is_ours(name: str) -> bool:
    """Whether a file of this name may be a run's."""
    first = name.partition("/")[0]
    files = {
        RUN, JOURNAL, TRIALS, HISTORY, REPORT, START, MODEL, PICTURE, MANIFEST, PREDICTIONS, TUNED,
        CONFIRMED,
    }  # fmt: skip
    files |= set(map(smaller_model, SMALLER))
    folders = {BEST, TUNE, CONFIRM, FINETUNE, TENSORBOARD}
    other = rf"{CARD}|{JOURNAL}\.lock|.+\.lease|[0-9a-f]{{16}}-{MODEL}"
    named = is_tuned_state(name) or bool(re.fullmatch(other, name))
    return named or first in (files if first == name else folders)


def is_remnant(name: str) -> bool:
    """Whether a file shows that a run was here: no lease, and no README.md, which others have."""
    return is_ours(name) and name != CARD and not name.endswith(".lease")


def lease_file(work: str) -> str:
    """The lease of a kind of work, as "search"."""
    return f"{work}.lease"
