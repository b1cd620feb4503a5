"""JournalFileBackend waits for the disk after each parameter of a suggestion."""

import os
import sys
import tempfile

import optuna
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
with tempfile.TemporaryDirectory() as folder:
    backend = JournalFileBackend(f"{folder}/study.journal")
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend))
    trial, waits, plain = study.ask(), [], os.fsync
    os.fsync = waits.append
    for i in range(8):
        trial.suggest_float(f"x{i}", 0, 1)
    os.fsync = plain
if waits:
    sys.exit(f"FAULT: one suggestion of 8 parameters waits {len(waits)} times for the disk")
