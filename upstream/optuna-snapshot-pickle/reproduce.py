"""JournalStorage unpickles what a server gives it: the server runs code in every process."""

import inspect
import sys

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._base import BaseJournalSnapshot


class Backend(BaseJournalBackend, BaseJournalSnapshot):
    """As JournalRedisBackend. Somebody else has written the snapshot."""

    def read_logs(self, log_number_from):
        return []

    append_logs = save_snapshot = lambda self, content: None

    def load_snapshot(self):
        return b"cbuiltins\nexec\n(S'import sys; sys.owned = True'\ntR."


plain = "use_snapshots" in inspect.signature(JournalStorage).parameters  # with the change
JournalStorage(Backend(), **({"use_snapshots": False} if plain else {}))
if hasattr(sys, "owned"):
    sys.exit("FAULT: the snapshot has run code, and no argument turns snapshots off")
