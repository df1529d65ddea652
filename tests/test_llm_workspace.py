"""llm/workspace.py: room is lent to one at a time, used again where it fits, and given up after an error."""

from __future__ import annotations

import torch

from stepaudio.errors import Cancelled, GenerationError
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.sampling import SpeechHead
from stepaudio.llm.step import StepWeights
from stepaudio.llm.workspace import Workspace, Workspaces
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams

SIZE = Dimensions(vocabulary=60, hidden=8, intermediate=8, layers=1, heads=2, groups=1, norm_eps=1e-5, max_length=4096)


def make(batch: int, capacity: int) -> Workspace:
    head = SpeechHead(torch.zeros(60, 8), SpeechVocabulary(range(10, 30), range(30, 60), 3))
    return Workspace(StepWeights(Decoder(SIZE)), head, batch, capacity, None)


def test_room_that_came_back_is_lent_again_where_it_is_large_enough() -> None:
    pool = Workspaces(make)
    with pool.lend(2, 700) as first:
        assert (first.state.batch, first.state.capacity) == (2, 1024)
        with pool.lend(1, 100) as second:
            assert second is not first
    for batch, capacity, same in ((1, 1024, {first, second}), (2, 10, {first})):
        with pool.lend(batch, capacity) as again:
            assert again in same
    with pool.lend(3, 10) as wider, pool.lend(1, 1025) as longer:
        assert not {wider, longer} & {first, second}
        assert longer.state.capacity == 2048


def test_smaller_room_is_given_up_before_larger_is_taken() -> None:
    pool = Workspaces(make)
    with pool.lend(2, 10) as small:
        pass
    with pool.lend(1, 5000) as long:
        pass
    with pool.lend(4, 10) as wide:
        assert small not in pool._free
        assert long in pool._free  # nothing else is as long
    with pool.lend(2, 10) as again:
        assert again in (long, wide)


def test_room_is_kept_after_a_stop_and_given_up_after_an_error() -> None:
    pool = Workspaces(make)

    def lent(error: Exception | None) -> Workspace:
        workspace = None
        try:
            with pool.lend(1, 10) as workspace:
                if error:
                    raise error
        except (Cancelled, GenerationError):
            pass
        return workspace

    first = lent(Cancelled("stopped"))
    assert lent(GenerationError("no numbers")) is first
    assert lent(None) is not first


def test_the_steps_used_last_are_kept() -> None:
    workspace = make(2, 10)
    first = workspace.step(1, SamplingParams())
    assert workspace.step(1, SamplingParams()) is first
    assert workspace.step(2, SamplingParams()) is not first
    for top_k in range(7):
        workspace.step(1, SamplingParams(top_k=top_k))
    assert workspace.step(1, SamplingParams()) is not first
