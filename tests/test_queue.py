from __future__ import annotations

import gc
import io
import logging
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from stepaudio.errors import Busy, Cancelled, GenerationError, InvalidInput, ShuttingDown
from stepaudio.log import TextFormatter
from stepaudio.queue import Job, JobQueue


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    with JobQueue(limit=4) as queue:
        yield queue


class Gate:
    """Work that says that it has begun and goes on when it is let; it stops when asked to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._go = threading.Event()

    def __call__(self, job: Job[str]) -> str:
        self.begun.set()
        while not self._go.wait(0.01):
            if job.should_stop():
                raise Cancelled("stopped as asked")
        return "let go"

    def let(self) -> None:
        self._go.set()


def busy(queue: JobQueue) -> tuple[Gate, Job[str]]:
    """Occupy the queue's only worker."""
    gate = Gate()
    job = queue.submit(gate)
    assert gate.begun.wait(5)
    return gate, job


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def worker_threads() -> int:
    return sum(thread.name.startswith("stepaudio-job") for thread in threading.enumerate())


def test_a_job_returns_what_its_work_returns(queue: JobQueue) -> None:
    job = queue.submit(lambda job: f"{job.label} of {job.id}", label="Clone")
    assert job.result(5) == f"Clone of {job.id}"
    assert (job.state, job.position, job.over) == ("done", 0, True)
    assert re.fullmatch("[0-9a-f]{8}", job.id)
    assert job.started is not None
    assert job.finished is not None
    assert job.submitted <= job.started <= job.finished <= time.monotonic()
    assert queue.submit(lambda job: None).result(5) is None


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(queue: JobQueue) -> None:
    gate, first = busy(queue)
    order: list[int] = []
    jobs = [queue.submit(lambda job, n=n: order.append(n)) for n in range(4)]
    assert [first.position, *(job.position for job in jobs)] == [0, 1, 2, 3, 4]
    assert [first.state, *(job.state for job in jobs)] == ["running"] + 4 * ["waiting"]
    assert (queue.running, queue.waiting) == (1, 4)
    gate.let()
    for job in jobs:
        job.result(5)
    assert order == [0, 1, 2, 3]
    assert within(5, lambda: (queue.running, queue.waiting) == (0, 0))


def test_a_full_queue_says_how_many_wait_and_takes_jobs_again_later(queue: JobQueue) -> None:
    gate, first = busy(queue)
    jobs = [queue.submit(lambda job: 1) for _ in range(4)]
    with pytest.raises(Busy, match="4 waiting"):
        queue.submit(lambda job: 1)
    jobs[2].cancel()
    jobs.append(queue.submit(lambda job: 2))
    with pytest.raises(Busy):
        queue.submit(lambda job: 1)
    gate.let()
    assert first.result(5) == "let go"
    assert [job.result(5) for job in jobs if job is not jobs[2]] == [1, 1, 1, 2]


def test_a_job_that_an_idle_worker_takes_at_once_does_not_count_as_waiting() -> None:
    with JobQueue(limit=0, workers=2) as queue:
        gates = [Gate(), Gate()]
        jobs = [queue.submit(gate) for gate in gates]
        with pytest.raises(Busy):
            queue.submit(lambda job: None)
        for gate in gates:
            gate.let()
        assert [job.result(5) for job in jobs] == ["let go", "let go"]


def test_several_workers_run_side_by_side() -> None:
    with JobQueue(limit=1, workers=3) as queue:
        together = threading.Barrier(3, timeout=5)
        jobs = [queue.submit(lambda job: together.wait()) for _ in range(3)]
        assert sorted(job.result(5) for job in jobs) == [0, 1, 2]


def test_progress_is_what_was_reported_last(queue: JobQueue) -> None:
    reported, go = threading.Event(), threading.Event()

    def work(job: Job[None]) -> None:
        job.report("Speech tokens", 0.25)
        job.report("Flow", 1.5)
        reported.set()
        go.wait(5)

    job = queue.submit(work)
    assert job.progress in [("", 0.0), ("Speech tokens", 0.25), ("Flow", 1.0)]
    assert reported.wait(5)
    assert job.progress == ("Flow", 1.0)
    go.set()
    job.result(5)


def test_a_poller_sees_every_state_and_stops_waiting_when_the_job_is_over(queue: JobQueue) -> None:
    gate, first = busy(queue)
    other = queue.submit(lambda job: None)
    seen: list[tuple[str, int]] = []
    job = queue.submit(lambda job: job.report("Flow", 0.5))

    def poll() -> None:
        changes = -1
        while not job.over:
            changes = job.wait_for_change(5, changes)
            seen.append((job.state, job.position))

    poller = threading.Thread(target=poll)
    poller.start()
    assert within(5, lambda: seen == [("waiting", 2)])
    other.cancel()
    assert within(5, lambda: seen[-1:] == [("waiting", 1)])
    gate.let()
    poller.join(5)
    assert not poller.is_alive()
    assert seen[-1] == ("done", 0)
    start = time.monotonic()
    job.wait_for_change(5)
    assert time.monotonic() - start < 1
    assert first.result(5) == "let go"


def test_waiting_for_a_change_ends_at_its_timeout(queue: JobQueue) -> None:
    _, job = busy(queue)
    changes = job.changes
    start = time.monotonic()
    assert job.wait_for_change(0.1) == changes
    assert 0.1 <= time.monotonic() - start < 2


def test_a_waiting_job_that_is_cancelled_never_runs(queue: JobQueue) -> None:
    gate, first = busy(queue)
    ran = threading.Event()
    job, next_one = queue.submit(lambda job: ran.set()), queue.submit(lambda job: 7)
    job.cancel()
    job.cancel()
    assert (job.state, next_one.position, queue.waiting) == ("cancelled", 1, 1)
    with pytest.raises(Cancelled):
        job.result(5)
    gate.let()
    assert next_one.result(5) == 7
    assert first.result(5) == "let go"
    assert not ran.is_set()
    assert job.started is None
    assert job.finished is not None


def test_a_running_job_that_is_cancelled_is_asked_to_stop(queue: JobQueue) -> None:
    _, job = busy(queue)
    assert not job.should_stop()
    job.cancel()
    assert job.should_stop()
    with pytest.raises(Cancelled, match="stopped as asked"):
        job.result(5)
    assert job.state == "cancelled"
    assert queue.submit(lambda job: 3).result(5) == 3


def test_cancelling_a_job_that_is_over_changes_nothing(queue: JobQueue) -> None:
    job = queue.submit(lambda job: 5)
    assert job.result(5) == 5
    job.cancel()
    assert (job.state, job.should_stop(), job.result(0)) == ("done", False, 5)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit(3), InvalidInput("too long")])
def test_an_exception_of_a_job_reaches_whoever_asks_and_not_the_worker(
    queue: JobQueue, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def work(job: Job[None]) -> None:
        raise error

    job = queue.submit(work, label="Clone")
    with pytest.raises(type(error)) as caught:
        job.result(5)
    assert caught.value is error
    assert job.state == "failed"
    assert queue.submit(lambda job: 1).result(5) == 1
    # What nobody expected is logged even if nobody asks; a user's error is the page's to show.
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (0 if isinstance(error, InvalidInput) else 1)
    assert all(record.exc_info is not None and record.exc_info[1] is error for record in logged)


def test_asking_for_a_result_too_early_times_out(queue: JobQueue) -> None:
    gate, job = busy(queue)
    with pytest.raises(TimeoutError):
        job.result(0.05)
    gate.let()
    assert job.result(5) == "let go"


def test_closing_lets_the_running_job_finish_and_cancels_those_that_wait() -> None:
    queue = JobQueue(limit=4)
    gate, running = busy(queue)
    waiting = queue.submit(lambda job: 1)
    threading.Timer(0.2, gate.let).start()
    queue.close(drain_seconds=10)
    assert running.result(0) == "let go"
    assert waiting.state == "cancelled"
    with pytest.raises(Busy, match="shut down"):
        queue.submit(lambda job: 1)
    queue.close()


def test_closing_stops_a_job_that_does_not_finish_within_the_limit() -> None:
    queue = JobQueue(limit=4)
    _, running = busy(queue)
    start = time.monotonic()
    queue.close(drain_seconds=0.2)
    assert 0.2 <= time.monotonic() - start < 3
    assert running.state == "cancelled"
    assert worker_threads() == 0


def test_a_thousand_quick_jobs_leave_no_thread_behind() -> None:
    before = threading.active_count()
    with JobQueue(limit=1000, workers=2) as queue:
        jobs = [queue.submit(lambda job, n=n: n * n) for n in range(1000)]
        assert [job.result(30) for job in jobs] == [n * n for n in range(1000)]
        assert len({job.id for job in jobs}) == 1000
        assert threading.active_count() == before + 2
    assert threading.active_count() == before


def test_a_storm_of_submits_and_cancels_leaves_every_job_over_and_no_thread_behind() -> None:
    before = threading.active_count()
    refused: list[Busy] = []
    jobs: list[Job[int]] = []

    def work(job: Job[int]) -> int:
        for step in range(5):
            if job.should_stop():
                raise Cancelled("stopped")
            job.report("step", step / 5)
        return 1

    def storm(seed: int) -> None:
        rng = random.Random(seed)
        mine: list[Job[int]] = []
        for _ in range(150):
            try:
                mine.append(queue.submit(work))
            except Busy as error:
                refused.append(error)
            if mine and rng.random() < 0.7:
                rng.choice(mine).cancel()
                rng.choice(mine).wait_for_change(0.001)
                assert rng.choice(mine).position >= 0
        jobs.extend(mine)

    with JobQueue(limit=10, workers=2) as queue:
        threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert within(10, lambda: all(job.over for job in jobs))
        assert within(5, lambda: (queue.waiting, queue.running) == (0, 0))
    assert len(jobs) + len(refused) == 900
    states = {job.state for job in jobs}
    assert states <= {"done", "cancelled"}
    assert "cancelled" in states
    assert all(job.result(0) == 1 for job in jobs if job.state == "done")
    assert threading.active_count() == before


def test_the_queue_keeps_nothing_of_a_job_that_is_over(queue: JobQueue) -> None:
    class Upload:
        pass

    def submit(fails: bool) -> tuple[weakref.ref[Upload], weakref.ref[Job[None]]]:
        upload = Upload()

        def work(job: Job[None], upload: Upload = upload) -> None:
            if fails:
                raise InvalidInput(repr(upload))

        job = queue.submit(work)
        assert within(5, lambda: job.over)
        return weakref.ref(upload), weakref.ref(job)

    for fails in (False, True):
        references = submit(fails)
        assert within(5, lambda references=references: gc.collect() >= 0 and all(ref() is None for ref in references))


def test_a_job_that_is_kept_for_its_result_keeps_no_upload(queue: JobQueue) -> None:
    class Upload:
        pass

    upload = Upload()
    reference = weakref.ref(upload)
    job = queue.submit(lambda job, upload=upload: 1)
    assert job.result(5) == 1
    del upload
    assert within(5, lambda: gc.collect() >= 0 and reference() is None)
    assert job.result(0) == 1


def test_whoever_waits_for_the_end_is_told_it_with_the_error_once() -> None:
    told = []

    def fail(job: Job[None]) -> None:
        raise GenerationError("made up")

    with JobQueue(limit=4) as queue:
        release = threading.Event()
        good = queue.submit(lambda job: release.wait(5))
        bad, never = queue.submit(fail), queue.submit(fail)
        for job in (good, bad, never):
            assert job.error is None
            job.when_over(lambda job=job: told.append((job, job.state, type(job.error))))
        never.cancel()
        release.set()
        good.result(5)
        with pytest.raises(GenerationError):
            bad.result(5)
    assert told == [(never, "cancelled", Cancelled), (good, "done", type(None)), (bad, "failed", GenerationError)]
    good.when_over(lambda: told.append("late"))
    assert told[3:] == ["late"]


def test_whoever_found_the_line_full_comes_before_those_who_were_just_served():
    hold, release = threading.Event(), threading.Event()
    with JobQueue(limit=2) as queue:
        first = queue.submit(lambda job: hold.wait(30), client="ada")
        assert within(30, lambda: first.state == "running")
        jobs = [queue.submit(lambda job: release.wait(30), client="ada") for _ in range(2)]
        with pytest.raises(Busy):
            queue.submit(lambda job: None, client="bob")
        hold.set()
        assert within(30, lambda: queue.waiting == 1)
        with pytest.raises(Busy):  # there is room, and it is bob's
            queue.submit(lambda job: None, client="ada")
        jobs.append(queue.submit(lambda job: None, client="bob"))
        release.set()
        for job in jobs:
            job.result(30)
        assert queue.submit(lambda job: 7, client="ada").result(30) == 7


@contextmanager
def one_place_free_after_bob_was_turned_away() -> Iterator[tuple[JobQueue, threading.Event]]:
    """A queue in which ada's jobs are, and the event that ends the last two of them."""
    hold, release = threading.Event(), threading.Event()
    with JobQueue(limit=2) as queue:
        first = queue.submit(lambda job: hold.wait(30), client="ada")
        assert within(30, lambda: first.state == "running")
        for _ in range(2):
            queue.submit(lambda job: release.wait(30), client="ada")
        with pytest.raises(Busy):
            queue.submit(lambda job: None, client="bob")
        hold.set()
        assert within(30, lambda: queue.waiting == 1)
        yield queue, release


def test_whoever_has_no_name_takes_any_place_that_is_free():
    with one_place_free_after_bob_was_turned_away() as (queue, release):
        last = queue.submit(lambda job: 7)
        release.set()
        assert last.result(30) == 7


def test_the_place_of_one_who_does_not_come_back_is_given_away(monkeypatch):
    monkeypatch.setattr("stepaudio.queue.BACK_TURNS", 0)
    with one_place_free_after_bob_was_turned_away() as (queue, release):
        last = queue.submit(lambda job: 7, client="ada")
        release.set()
        assert last.result(30) == 7


def test_one_client_may_have_so_many_jobs_and_others_are_not_held_up_by_it():
    release = threading.Event()
    with JobQueue(limit=9, client_limit=2) as queue:
        jobs = [queue.submit(lambda job: release.wait(30), client="ada") for _ in range(2)]
        with pytest.raises(Busy, match="2 requests of yours"):
            queue.submit(lambda job: None, client="ada")
        jobs += [queue.submit(lambda job: None, client=name) for name in ("bob", "", "", "")]
        jobs[1].cancel()
        jobs.append(queue.submit(lambda job: None, client="ada"))
        release.set()
        for job in (jobs[0], *jobs[2:]):
            job.result(30)
        queue.submit(lambda job: None, client="ada").result(30)


def test_a_closed_queue_says_that_it_is_shut_down():
    queue = JobQueue(limit=1)
    queue.close()
    with pytest.raises(ShuttingDown):
        queue.submit(lambda job: None)


def test_the_queue_knows_how_long_a_turn_takes():
    with JobQueue(limit=9) as queue:
        for _ in range(40):
            queue.submit(lambda job: None).result(30)
        assert queue.turn_seconds < 0.5


def test_a_turn_is_timed_without_its_waiting():
    hold = threading.Event()
    with JobQueue(limit=50) as queue:
        jobs = [queue.submit(lambda job: hold.wait(30)), *(queue.submit(lambda job: None) for _ in range(40))]
        time.sleep(1.0)
        hold.set()
        for job in jobs:
            job.result(30)
        assert queue.turn_seconds < 0.5


def test_no_place_is_kept_for_a_client_that_may_not_take_it():
    release = threading.Event()
    with JobQueue(limit=3, client_limit=2) as queue:
        running = queue.submit(lambda job: release.wait(30), client="ada")
        assert within(30, lambda: running.state == "running")
        waiting = [queue.submit(lambda job: None, client=name) for name in ("ada", "bob", "eve")]
        with pytest.raises(Busy, match="2 requests of yours"):
            queue.submit(lambda job: None, client="ada")
        waiting[1].cancel()
        waiting[1] = queue.submit(lambda job: None, client="dan")
        release.set()
        for job in (running, *waiting):
            job.result(30)


def test_half_of_the_places_at_the_most_are_kept_for_those_turned_away():
    release = threading.Event()
    with JobQueue(limit=4) as queue:
        running = queue.submit(lambda job: release.wait(30))
        assert within(30, lambda: running.state == "running")
        waiting = [queue.submit(lambda job: None) for _ in range(4)]
        for name in ("ada", "bob", "cat", "dan"):
            with pytest.raises(Busy, match="The line is full"):
                queue.submit(lambda job: None, client=name)
        for job in waiting[:3]:
            job.cancel()
        last = queue.submit(lambda job: 7, client="eve")
        with pytest.raises(Busy, match="The line is full"):
            queue.submit(lambda job: None, client="fay")
        release.set()
        assert last.result(30) == 7


def test_a_client_that_came_in_has_no_place_kept_any_more():
    with one_place_free_after_bob_was_turned_away() as (queue, release):
        came = queue.submit(lambda job: release.wait(30), client="bob")
        queue._line.waiting[0].cancel()
        another = queue.submit(lambda job: 7, client="ada")
        release.set()
        assert another.result(30) == 7
        came.result(30)


def test_the_traceback_of_an_unforeseen_failure_carries_the_id_that_the_user_is_told(queue: JobQueue) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())
    logging.getLogger("stepaudio.queue").addHandler(handler)
    try:
        job = queue.submit(lambda job: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            job.result(30)
    finally:
        logging.getLogger("stepaudio.queue").removeHandler(handler)
    lines = written.getvalue().splitlines()
    assert "ZeroDivisionError" in lines[-1]
    assert all(f"[{job.id}]" in line for line in lines)


def test_what_is_not_over_at_the_end_of_a_drain_is_cancelled(queue: JobQueue) -> None:
    gate, job = busy(queue)
    behind = queue.submit(lambda job: None)
    assert queue.drain(0.05) is False
    assert behind.state == "cancelled"
    with pytest.raises(Cancelled):
        job.result(30)
    gate.let()
