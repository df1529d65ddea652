"""StageTimer: nested stages, sums that hold, and parts that ran side by side."""

from __future__ import annotations

import pytest

from stepaudio.timing import StageTimer, critical_path
from stepaudio.types import PartTime


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_children_and_other_sum_to_their_parent():
    clock = Clock()
    timer = StageTimer(clock=clock)
    with timer.stage("Clone"):
        clock.now += 1
        with timer.stage("LLM") as stage:
            clock.now += 3
            stage.note = "fast"
        clock.now += 0.5
    timings = timer.finish()
    (clone,) = timings.stages
    assert clone.seconds == pytest.approx(4.5)
    assert [child.name for child in clone.children] == ["LLM", "other"]
    assert sum(child.seconds for child in clone.children) == pytest.approx(clone.seconds)
    assert timings.find("LLM").note == "fast"
    assert timings.total == pytest.approx(4.5)


def test_a_stage_is_recorded_when_its_body_raises():
    clock = Clock()
    timer = StageTimer(clock=clock)

    def fail() -> None:
        with timer.stage("Flow"):
            clock.now += 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with timer.stage("Vocoder"):
        clock.now += 1
    assert [(stage.name, stage.seconds) for stage in timer.finish().stages] == [("Flow", 2), ("Vocoder", 1)]


def test_the_device_is_synchronised_before_the_clock_is_read_at_both_edges():
    clock = Clock()
    calls = []

    def synchronize() -> None:
        calls.append(clock.now)
        clock.now += 1  # work that was queued and is only now finished

    timer = StageTimer(synchronize, clock)
    with timer.stage("LLM"):
        clock.now += 5
    (stage,) = timer.finish().stages
    assert calls == [100.0, 106.0]
    assert stage.seconds == 6  # the queued work before it is not charged to it, its own is


def test_parts_side_by_side_sum_to_the_wall_time_and_keep_their_busy_seconds():
    parts = [PartTime("a", 0.0, 4.0), PartTime("b", 0.0, 1.0), PartTime("c", 0.5, 3.0)]
    stages = critical_path(parts, 0.0)
    assert [stage.name for stage in stages] == ["b", "c", "a"]
    assert sum(stage.seconds for stage in stages) == pytest.approx(4.0)
    assert {stage.name: stage.busy for stage in stages} == {"a": 4.0, "b": 1.0, "c": 2.5}


def test_measured_stages_can_be_added_and_count_for_their_parent():
    clock = Clock()
    timer = StageTimer(clock=clock)
    with timer.stage("FunASR"):
        clock.now += 2
        timer.add("Mel", 0.5, busy=0.7)
    (funasr,) = timer.finish().stages
    assert [(c.name, c.seconds, c.busy) for c in funasr.children] == [("Mel", 0.5, 0.7), ("other", 1.5, None)]
