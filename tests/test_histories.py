"""Lease, journal, checkpoints and publication as several processes interleave on one object store.

The code under test is the shipped one from the lease down to the requests. What is made up is the
store, the clock and the training (see tests/support/fake_store.py). Hypothesis draws which process
makes its next request, which requests are lost or arrive twice, who is killed, interrupted or
suspended, and for how long. Checked after every change of an object:

- one writer at a time: who has lost the run changes nothing more, but for a request that was under
  way, and never what a later owner has written;
- no acknowledged epoch is lost: neither its checkpoint nor its trial in the journal;
- a published model is whole, together with the pictures' file;
- no field of run.json is lost.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mnist_ray import processes
from mnist_ray.errors import MnistRayError, WorkError
from mnist_ray.run import layout, lease, publication
from mnist_ray.run.about import About
from mnist_ray.run.records import Record, Records
from mnist_ray.search_job import keeper
from mnist_ray.storage import RunStorage, object_store, run_storage
from mnist_ray.study import journal
from mnist_ray.study.trials import RUN
from tests.support.about import facts
from tests.support.fake_store import FAULTS, Process, World
from tests.support.tune_loop import result

URI, ROOT = "s3://bucket/runs/a", "runs/a"
EPOCHS, TRIALS = 2, 3
LATEST = "latest.safetensors"
MOST = 4  # processes of a history
READ_AGAIN = publication.READ_AGAIN  # which tests/conftest.py takes away; here it costs no time
SEEN: Counter[str] = Counter()  # over all histories, to tell that they are not empty


class Job:
    """A search or a fine-tuning: its main thread, its heart, and its worker elsewhere."""

    def __init__(self, world: World, check: "Checks", work: str, number: int, folder: Path) -> None:
        self.world, self.checks, self.work, self.number = world, check, work, number
        self.folder = folder
        self.lease = lease.Lease(RunStorage(URI), work)
        self.ended_because = ""
        self.over = self.beats = False
        self.request: Callable[[], None] | None = None  # that the worker is to do
        self.main = Process(world, self._main, f"{work} {number}")
        self.heart = Process(world, self._heart, f"heart {number}")
        self.worker = Process(world, self._work, f"worker {number}")

    @property
    def flows(self) -> list[Process]:
        return [self.main, self.heart, self.worker]

    def step(self) -> None:
        """Its main thread goes on, or sleeps; its worker and its heart do what is due."""
        self.main.step()
        if self.request is not None:
            self.worker.step()
        if self.world.now >= self.heart.wakes_at:
            self.heart.step()

    def _main(self) -> None:
        try:
            self.lease.take("--name")
            self.beats = True
            SEEN[f"{self.work} held"] += 1
            (self._search if self.work == "search" else self._finetune)()
            self.ended_because = "done"
        except MnistRayError as error:
            self.ended_because = str(error)
        except KeyboardInterrupt:
            self.ended_because = "interrupted"
        SEEN[f"{self.work}: {self.ended_because.replace(URI, '')[:30]}"] += 1
        self.over = True

    def _heart(self) -> None:
        """As lease._beat."""
        while not self.over:
            self.world.sleep(lease.BEAT)
            if self.beats and not self.over:
                with suppress(WorkError):
                    self.lease.renew()
                if self.lease.lost.is_set():
                    self.main.interrupted = True
                    return
        self.lease.give_back()

    def _work(self) -> None:
        while not self.over:
            self.world.current.pause()  # type: ignore[union-attr]
            if self.request is not None:
                with suppress(WorkError):
                    self.request()
                self.request = None

    def _on_worker(self, request: Callable[[], None]) -> None:
        """Waits for a request to the worker. Its host may be lost: then for ever."""
        done = []
        self.request = lambda: (request(), done.append(True))[0]  # type: ignore[func-returns-value]
        while self.request is not None:
            self.main.pause()
        if not done:
            raise WorkError("the worker has failed")

    # ---- the search, as job, engine and keeper do it

    def _begin(self, state: str) -> About:
        owned = self.lease.owned
        mark = {f"mark-{self.number}": self.work}
        if owned.exists(layout.RUN):
            about = About.read(owned, "--run").patch(state=state, **mark)
        else:
            about = About.claim(owned, {**facts(), "state": state, **mark}, "--name: taken")
        self.checks.marks |= mark
        return about

    def _search(self) -> None:
        owned = self.lease.owned
        about = self._begin("searching")
        path = self.folder / f"{self.number}.journal"
        if owned.exists(layout.JOURNAL):
            path.write_bytes(owned.read_bytes(layout.JOURNAL))
        study = optuna.create_study(
            storage=journal.journal_file(path),
            sampler=optuna.samplers.RandomSampler(),
            study_name="a",
            load_if_exists=True,
        )
        records = Records("val_accuracy", TRIALS)
        kept = keeper.Keeper(owned, records, {LATEST: "model.safetensors"}, path, resumed=True)
        goes_on = []
        for frozen in study.get_trials(deepcopy=False):
            record = records.add(Record(frozen.number, {}, state=frozen.state.name))
            if frozen.state == optuna.trial.TrialState.RUNNING:
                if owned.exists(f"{layout.trial_folder(frozen.number)}/{LATEST}"):
                    goes_on.append(optuna.Trial(study, frozen._trial_id))
                else:
                    study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
                    records.end(record.number, "FAIL")
        while goes_on or len(records.trials) < TRIALS:
            trial = goes_on.pop(0) if goes_on else study.ask()
            trial.set_user_attr(RUN, "a")
            journal.on_disk(study)
            kept.keep_journal()
            if trial.number not in records.trials:
                records.add(Record(trial.number, {}))
            self._train(trial, records)
            study.tell(trial, 0.5)
            records.end(trial.number, "COMPLETE")
            kept.settled(trial.number)
        kept.save()
        about.ended("searched")
        SEEN["searched"] += 1

    def _train(self, trial: optuna.Trial, records: Records) -> None:
        storage = lease.owned(URI, "search", self.lease.token)
        name = f"{layout.trial_folder(trial.number)}/{LATEST}"
        begun = json.loads(storage.read_bytes(name))["epoch"] if storage.exists(name) else 0
        for epoch in range(1, EPOCHS + 1):
            if epoch > begun:
                state = json.dumps({"epoch": epoch, "by": self.number}).encode()
                self._on_worker(lambda state=state: storage.write_bytes(name, state))  # type: ignore[misc]
                self.checks.acknowledged(trial.number, epoch)
            row = result(epoch, 0.4 + 0.1 * epoch / (1 + trial.number))
            trial.report(row["val_accuracy"], epoch)
            records.report(trial.number, row)
            records.trials[trial.number].n_parameters = 7

    # ---- the fine-tuning

    def _finetune(self) -> None:
        about = self._begin("finetuning")
        storage = lease.owned(URI, "fine-tuning", self.lease.token)
        name = f"{layout.stage_folder(1)}/{layout.STAGE_STATE}"
        begun = json.loads(storage.read_bytes(name))["epoch"] if storage.exists(name) else 0
        for epoch in range(begun + 1, EPOCHS + 1):
            state = json.dumps({"epoch": epoch, "by": self.number}).encode()
            self._on_worker(lambda state=state: storage.write_bytes(name, state))  # type: ignore[misc]
            self.checks.stage = max(self.checks.stage, epoch)
        model, picture = f"model of {self.number}".encode(), f"picture of {self.number}".encode()
        files = {layout.PICTURE: picture, layout.MODEL: model, layout.CARD: b"card"}
        about_picture = {"file": layout.PICTURE, "sha256": hashlib.sha256(picture).hexdigest()}
        manifest = {"file": layout.MODEL, "picture": about_picture}
        self._on_worker(lambda: publication.publish(storage, files, manifest))
        about.ended("done")
        SEEN["published"] += 1


class Checks:
    """What must hold of the store after every change."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.epochs: dict[int, int] = {}  # trial -> its acknowledged epochs
        self.settled: set[int] = set()  # trials whose checkpoints were removed
        self.stage = 0
        self.jobs: list[Job] = []
        self.takes: dict[str, list[str]] = {"search": [], "fine-tuning": []}  # tokens, in order
        self.writers: dict[str, int] = {}  # key -> place among the takes of its last writer
        self.after_loss: Counter[str] = Counter()
        self.world: World

    def acknowledged(self, trial: int, epoch: int) -> None:
        self.epochs[trial] = max(self.epochs.get(trial, 0), epoch)
        self.check_epochs()

    def changed(self, flow: Process, key: str, doubled: bool) -> None:
        name = key.removeprefix(f"{ROOT}/")
        if name.endswith(".lease"):
            self.taken(name)
            return
        job = next(job for job in self.jobs if flow in job.flows)
        takes = self.takes[job.work]
        place = takes.index(job.lease.token)
        writer = f"{job.work}:{name}"
        if name != layout.RUN:  # which both jobs change
            assert place >= self.writers.get(writer, 0), (
                f"{flow.name} changes a later owner's {name}"
            )
            self.writers[writer] = place
        if place != len(takes) - 1 and not doubled:
            self.after_loss[flow.name] += 1
            assert self.after_loss[flow.name] <= 1, f"{flow.name} goes on after its loss: {name}"
            SEEN["under way at the loss"] += 1
        if name.startswith(layout.CHECKPOINTS) and key not in self.world.objects:
            self.settled.add(int(name.split("/")[2]))
        self.check_epochs()
        self.check_model()
        self.check_marks()

    def taken(self, name: str) -> None:
        token = self.value(name).get("token")
        takes = self.takes[name.removesuffix(".lease")]
        if token is not None and token not in takes:
            SEEN["taken over"] += bool(takes)
            takes.append(token)

    def value(self, name: str) -> dict[str, Any]:
        found = self.world.objects.get(f"{ROOT}/{name}")
        return json.loads(found[0]) if found else {}

    def records(self) -> list[dict[str, Any]]:
        """The lines of the journal on storage."""
        lines = self.world.objects.get(f"{ROOT}/{layout.JOURNAL}", (b"", ""))[0].splitlines()
        return [json.loads(line) for line in lines]

    def ended(self) -> set[int]:
        """The trials that have ended, as the journal on storage says."""
        ends = (r for r in self.records() if r["op_code"] == 6 and r["state"] != 0)
        return {r["trial_id"] for r in ends}

    def check_epochs(self) -> None:
        trials, ended = [r for r in self.records() if r["op_code"] == 4], self.ended()
        for trial, epoch in self.epochs.items():
            assert trial < len(trials), f"trial {trial} is not in the journal"
            if trial in self.settled:
                assert trial in ended, f"trial {trial} has lost its end, and its checkpoint"
            else:
                found = self.value(f"{layout.trial_folder(trial)}/{LATEST}").get("epoch", 0)
                assert found >= epoch, f"trial {trial} has epoch {found} instead of {epoch}"
        stage = self.value(f"{layout.stage_folder(1)}/{layout.STAGE_STATE}").get("epoch", 0)
        assert stage >= self.stage, f"the stage has epoch {stage} instead of {self.stage}"

    def check_model(self) -> None:
        manifest = self.value(layout.MANIFEST)
        if not manifest:
            return
        for part in (manifest, manifest["picture"]):
            if part is not None:
                found = self.world.objects.get(f"{ROOT}/{part['file']}", (b"", ""))[0]
                assert hashlib.sha256(found).hexdigest() == part["sha256"], f"{part['file']}"

    def check_marks(self) -> None:
        found = self.value(layout.RUN)
        assert self.marks.items() <= found.items(), "run.json has lost a field"


class Histories(RuleBasedStateMachine):
    """Up to MOST processes on one run."""

    def __init__(self) -> None:
        super().__init__()
        SEEN["histories"] += 1
        self.checks = Checks()
        self.world = self.checks.world = World(self.checks.changed)
        self.jobs = self.checks.jobs
        self.readers: list[Process] = []
        self.folder = Path(tempfile.mkdtemp(prefix="mray-histories-", dir=FOLDER))
        self.patch = pytest.MonkeyPatch()
        patch = self.patch.setattr
        patch(object_store, "obstore", self.world)
        patch(object_store, "connect", lambda address: None)
        for module in (lease, run_storage, publication, keeper):
            patch(module, "time", self.world)
        patch(publication, "READ_AGAIN", READ_AGAIN)
        patch(keeper, "QUICK", float("inf"))  # uploads are not put off
        patch(lease, "print", lambda *text, **options: None, raising=False)
        patch(processes, "this_process", self._this_process)
        patch(processes, "has_ended", self._has_ended)

    def _this_process(self) -> dict[str, Any]:
        job = next((job for job in self.jobs if self.world.current in job.flows), None)
        number = job.number if job else len(self.jobs)
        return {"machine": number % 2, "pid": number, "node": "n"}

    def _has_ended(self, process: dict[str, Any]) -> bool | None:
        """Known on the same machine only."""
        if process["machine"] != self._this_process()["machine"]:
            return None
        return self.jobs[process["pid"]].main.is_over

    def _start(self, work: str) -> None:
        self.jobs.append(Job(self.world, self.checks, work, len(self.jobs), self.folder))

    @initialize(first=st.sampled_from(["search", "fine-tuning"]), same=st.booleans())
    def begin(self, first: str, same: bool) -> None:
        self._start(first)
        self._start(first if same else {"search": "fine-tuning"}.get(first, "search"))

    @precondition(lambda self: len(self.jobs) < MOST)
    @rule(work=st.sampled_from(["search", "fine-tuning"]))
    def start(self, work: str) -> None:
        self._start(work)

    @rule(who=st.integers(0, MOST - 1), flow=st.integers(0, 2), steps=st.integers(1, 20))
    def one_goes_on(self, who: int, flow: int, steps: int) -> None:
        """The others are suspended meanwhile."""
        for _ in range(steps):
            self.jobs[who % len(self.jobs)].flows[flow].step()

    @rule(who=st.integers(0, MOST - 1), steps=st.integers(1, 60))
    def one_process_goes_on(self, who: int, steps: int) -> None:
        """With its worker and its heart."""
        for _ in range(steps):
            self.jobs[who % len(self.jobs)].step()

    @rule(rounds=st.integers(1, 30))
    def all_go_on(self, rounds: int) -> None:
        self._rounds(rounds)

    def _rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            for job in self.jobs:
                if self.world.now >= job.main.wakes_at:
                    job.step()
            for reader in self.readers:
                reader.step()
            self.world.now += 0.2

    @rule(who=st.integers(0, MOST - 1), flow=st.sampled_from([0, 0, 2]), writes=st.integers(1, 6))
    def one_is_suspended_before_a_write(self, who: int, flow: int, writes: int) -> None:
        """The request is made when it wakes up; meanwhile another may have taken the run."""
        job = self.jobs[who % len(self.jobs)]
        for _ in range(200):
            job.step()
            if job.flows[flow].is_writing:
                writes -= 1
                if not writes:
                    break
            self.world.now += 0.1
        for each in job.flows if flow == 0 else (job.heart, job.worker):
            each.is_suspended = job.beats

    @rule(who=st.integers(0, MOST - 1))
    def one_wakes_up(self, who: int) -> None:
        for flow in self.jobs[who % len(self.jobs)].flows:
            flow.is_suspended = False

    @rule(seconds=st.sampled_from([1.0, 6.0, 15.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(who=st.integers(0, MOST - 1), flow=st.integers(0, 2), fault=st.sampled_from(FAULTS))
    def a_request_fails(self, who: int, flow: int, fault: str) -> None:
        self.jobs[who % len(self.jobs)].flows[flow].faults.append(fault)

    @precondition(lambda self: self.world.late)
    @rule(place=st.integers(0, 9))
    def a_request_arrives_again(self, place: int) -> None:
        self.world.deliver(place)

    @rule(who=st.integers(0, MOST - 1), worker=st.booleans())
    def one_is_killed(self, who: int, worker: bool) -> None:
        """Its worker, on another machine, may live on."""
        job = self.jobs[who % len(self.jobs)]
        job.main.kill()
        job.heart.kill()
        if worker:
            job.worker.kill()

    @rule(who=st.integers(0, MOST - 1))
    def one_is_interrupted(self, who: int) -> None:
        job = self.jobs[who % len(self.jobs)]
        if job.beats:
            job.main.interrupted = True

    @precondition(lambda self: len(self.readers) < 2)
    @rule()
    def somebody_reads_the_model(self) -> None:
        storage = RunStorage(URI)

        def read() -> None:
            with suppress(FileNotFoundError):
                publication.read_verified(storage)
                SEEN["read"] += 1

        self.readers.append(Process(self.world, read, "reader"))

    def teardown(self) -> None:
        """A last search and fine-tuning find all of it, and publish."""
        SEEN["refused by their condition"] += self.world.refused
        try:
            if self.jobs:
                self._end()
        finally:
            for flow in [*self.readers, *(f for job in self.jobs for f in job.flows)]:
                flow.kill()
            self.patch.undo()
            shutil.rmtree(self.folder)

    def _end(self) -> None:
        while self.world.late:
            self.world.deliver(0)
        for job in self.jobs:
            for flow in job.flows:
                flow.kill()
        for work in ("search", "fine-tuning"):
            self._start(work)
            while not self.jobs[-1].main.is_over:
                self.jobs[-1].step()
                self.world.now += 0.1
            assert self.jobs[-1].ended_because == "done", self.jobs[-1].ended_because
        assert self.checks.epochs.keys() <= self.checks.ended()
        assert self.checks.value(layout.MANIFEST)["file"] == layout.MODEL


FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def checked(histories: int) -> None:
    SEEN.clear()
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=histories,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    print(*(f"{n:8,} {text}" for text, n in sorted(SEEN.items())), sep="\n")


def test_no_interleaving_of_processes_loses_or_mixes_anything() -> None:
    checked(200)
    for seen in ("taken over", "published", "searched", "read", "refused by their condition"):
        assert SEEN[seen] > 0, seen


@pytest.mark.slow
def test_no_interleaving_of_ten_thousand_does() -> None:
    checked(10_000)
