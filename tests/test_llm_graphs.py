"""llm/graphs.py: what is captured once and replayed speaks as what is computed. CUDA is stood in for.

The stand-in keeps to CUDA's rules: capturing does nothing to the tensors, and a replay repeats the captured operations
on the captured tensors, whatever Python would have done in the meantime.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.graphs import Captured, CudaCapture
from stepaudio.llm.layers import PlainLayers
from stepaudio.types import SamplingParams
from tests.test_llm_generate import GREEDY, Tiny, different_prompts

FIRST = 1
"""The graph that keeps the pool."""


class Recorder(TorchDispatchMode):
    """Lets operations happen, notes them, and can undo what they wrote into tensors from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable, tuple, dict, object]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in self.written(func, args, kwargs):
            self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    @staticmethod
    def written(func, args, kwargs) -> list[torch.Tensor]:
        named = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
        changed = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        return [leaf for name in changed for leaf in tree_leaves(named.get(name)) if isinstance(leaf, torch.Tensor)]

    def undo(self) -> None:
        for tensor, value in reversed(self.before.values()):
            tensor.copy_(value)


class Graph:
    """What torch.cuda.CUDAGraph is on a GPU."""

    made: int = 0
    replays: Counter[int]
    pools: set[str]
    """The pools that have been used, whether or not there still is a graph in them."""

    inside: WeakSet[Graph]
    """The graphs that are there, all of them in one pool."""

    def __init__(self) -> None:
        Graph.made += 1
        self.recorder = Recorder()

    def replay(self) -> None:
        Graph.replays[id(self)] += 1
        for func, args, kwargs, result in self.recorder.operations:
            again = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and again.data_ptr() != result.data_ptr():
                result.copy_(again)  # what is new in a captured operation has a fixed place


class Capturing:
    """What torch.cuda.graph is on a GPU."""

    def __init__(self, graph: Graph, pool: str, *, capture_error_mode: str) -> None:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        assert pool not in Graph.pools or Graph.inside, "a pool ends with its last graph"
        Graph.pools.add(pool)
        Graph.inside.add(graph)
        self.recorder = graph.recorder

    def __enter__(self) -> None:
        self.recorder.__enter__()

    def __exit__(self, *error: object) -> None:
        self.recorder.__exit__(*error)
        self.recorder.undo()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU, dressed up as a GPU that captures graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    Graph.made, Graph.replays, Graph.pools, Graph.inside = 0, Counter(), set(), WeakSet()
    return torch.device("cpu")


def capturing(tiny: Tiny, device: torch.device) -> SpeechLM:
    lm = tiny.lm(10)
    lm._layers, lm._capture = PlainLayers, CudaCapture(device)  # as on a GPU: no step is compiled
    return lm


def test_work_is_done_once_each_time_and_captured_the_second_time(device: torch.device) -> None:
    total = torch.zeros(3)
    one = torch.ones(3)
    work = Captured(lambda: total.add_(one), CudaCapture(device))
    for count in range(1, 6):
        work()
        assert total.tolist() == [count] * 3
        assert Graph.made == FIRST + (count > 1)
    assert list(Graph.replays.values()) == [4]


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(), SamplingParams(temperature=1.2, top_k=0, top_p=0.8, repetition_rule=False)]
)
def test_replayed_steps_speak_what_computed_ones_do(
    tmp_path: Path, device: torch.device, params: SamplingParams
) -> None:
    """Across a bucket of positions, from one request to the next, and while rows end."""
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(2.5)
    plain, graphs = tiny.lm(10), capturing(tiny, device)
    prompts, caps = different_prompts(3), [150, 50, 100]
    for seeds in ([1, 2, 3], [4, 5, 6]):
        results = [
            [
                (r.tokens.numbers.tolist(), r.new_ids, r.stopped)
                for r in lm.generate_many(prompts, params, seeds=seeds, max_tokens=caps)
            ]
            for lm in (plain, graphs)
        ]
        assert results[0] == results[1]
    assert sum(Graph.replays.values()) > 100
    assert set(Graph.replays.values()) != {1}


def test_a_graph_serves_later_requests(tmp_path: Path, device: torch.device) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    lm = capturing(tiny, device)

    def speak(seed: int) -> None:
        lm.generate(list(range(330, 370)), SamplingParams(), seed=seed, max_tokens=50)

    speak(0)
    assert Graph.made == FIRST + 3, "one for each kind of place, all within one bucket"
    replays = sum(Graph.replays.values())
    speak(1)
    assert Graph.made == FIRST + 3
    assert sum(Graph.replays.values()) == replays + 49


def test_when_all_graphs_have_gone_there_can_be_new_ones(tmp_path: Path, device: torch.device) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    lm = capturing(tiny, device)
    for _ in range(2):
        lm.generate(list(range(330, 370)), SamplingParams(), seed=0, max_tokens=20)
        assert len(Graph.inside) == FIRST + 3
        lm.forget()
        gc.collect()
        assert len(Graph.inside) == FIRST


def test_rows_leave_by_halves_so_that_few_graphs_serve_all(tmp_path: Path, device: torch.device) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    prompts, caps = different_prompts(5), [20, 40, 60, 80, 100]
    seeds = range(5)
    graphs = capturing(tiny, device)
    made = graphs.generate_many(prompts, SamplingParams(), seeds=seeds, max_tokens=caps)
    (workspace,) = graphs._workspaces._free
    assert workspace.state.batch == 8
    assert sorted(rows for rows, _ in workspace._steps) == [1, 2, 4, 8]
    expected = tiny.lm(10).generate_many(prompts, SamplingParams(), seeds=seeds, max_tokens=caps)
    assert [one.tokens.numbers.tolist() for one in made] == [one.tokens.numbers.tolist() for one in expected]


def test_the_host_looks_every_tenth_step(tmp_path: Path, device: torch.device) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    heard: list[int] = []
    capturing(tiny, device).generate(
        list(range(330, 370)),
        SamplingParams(),
        seed=0,
        max_tokens=45,
        on_numbers=lambda numbers: heard.append(len(numbers)),
    )
    assert heard == [10, 10, 10, 10, 5]
