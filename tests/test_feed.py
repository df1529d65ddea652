"""The way of a sound from the worker to its reader, and the tickets by which a page finds it."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from stepaudio.audiofile import pcm16
from stepaudio.errors import Busy, Cancelled, GenerationError
from stepaudio.feed import MOST_TICKETS, TICKET_SECONDS, SoundFeed, Tickets
from stepaudio.queue import JobQueue
from stepaudio.types import Waveform


@pytest.fixture
def queue():
    with JobQueue(limit=4) as running:
        yield running


def piece(value: float, count: int = 4) -> Waveform:
    return Waveform(np.full(count, value, np.float32), 24_000)


async def read(feed: SoundFeed) -> bytes:
    """Return all that a reader gets."""
    got = b""
    while (part := await feed.next()) is not None:
        got += part
    return got


def test_a_reader_gets_all_pieces_in_order_whether_it_comes_before_or_after_them(queue):
    expected = b"".join(pcm16(piece(value).samples) for value in (0.1, 0.2, 0.3))

    async def main(early: bool) -> bytes:
        feed, go = SoundFeed(), threading.Event()

        def work(job):
            go.wait(5)
            for value in (0.1, 0.2, 0.3):
                feed.put(piece(value))

        reading = asyncio.create_task(read(feed)) if early else None
        await asyncio.sleep(0.05)
        job = queue.submit(work)
        feed.follow(job)
        assert feed.job_id == job.id
        go.set()
        if reading is None:
            await asyncio.to_thread(job.result, 5)
            reading = asyncio.create_task(read(feed))
        got = await asyncio.wait_for(reading, 5)
        assert feed.error is None
        assert feed.sample_rate == 24_000
        return got

    assert asyncio.run(main(early=True)) == expected
    assert asyncio.run(main(early=False)) == expected


def test_the_error_of_the_job_ends_the_feed_behind_what_had_come(queue):
    feed = SoundFeed()

    def work(job):
        feed.put(piece(0.5))
        raise GenerationError("no more")

    feed.follow(queue.submit(work))
    assert len(asyncio.run(asyncio.wait_for(read(feed), 5))) == 8
    assert isinstance(feed.error, GenerationError)


def test_a_reader_who_leaves_cancels_a_job_that_runs_or_waits_or_comes_later(queue):
    def until_stopped(job):
        while not job.should_stop():
            threading.Event().wait(0.01)
        raise Cancelled("stopped")

    running, waiting, later = SoundFeed(), SoundFeed(), SoundFeed()
    jobs = [queue.submit(until_stopped), queue.submit(until_stopped)]
    running.follow(jobs[0])
    waiting.follow(jobs[1])
    for feed in (waiting, running, later):
        feed.leave()
    jobs.append(queue.submit(until_stopped))
    later.follow(jobs[2])
    for job, feed in zip(jobs, (running, waiting, later), strict=True):
        with pytest.raises(Cancelled):
            job.result(5)
        assert isinstance(feed.error, Cancelled)


def test_what_nobody_will_read_is_not_kept(queue):
    feed = SoundFeed()
    feed.put(piece(0.5))
    feed.leave()
    feed.put(piece(0.5))
    feed.end()
    assert asyncio.run(read(feed)) == b""


def test_a_ticket_serves_one_reader_and_one_job_who_get_the_same_feed():
    tickets = Tickets()
    for first, second in (("read", "write"), ("write", "read")):
        name = tickets.open()
        feed = tickets.claim(name, first)
        assert feed is not None
        assert tickets.claim(name, first) is None
        assert tickets.claim(name, second) is feed
        assert tickets.claim(name, second) is None


def test_ids_are_long_and_random_and_others_lead_nowhere():
    tickets = Tickets()
    names = {tickets.open() for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {43}
    for wrong in ("", "0", names.pop()[:-1]):
        assert tickets.claim(wrong, "read") is None


def test_tickets_expire_and_make_room():
    now = [0.0]
    tickets = Tickets(lambda: now[0])
    names = [tickets.open() for _ in range(MOST_TICKETS)]
    with pytest.raises(Busy, match="Too many streams"):
        tickets.open()
    now[0] = TICKET_SECONDS - 1
    assert tickets.claim(names[0], "write") is not None
    now[0] = TICKET_SECONDS
    assert tickets.claim(names[0], "read") is None
    assert tickets.claim(names[1], "read") is None
    assert tickets.open()
