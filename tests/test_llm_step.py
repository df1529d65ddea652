"""llm/step.py: the same numbers as the decoder's own, without new memory and without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.layers import LayersMaker, PlainLayers
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.sampling import SpeechHead, uniforms
from stepaudio.llm.step import DecodeState, Step, StepWeights
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams

SIZE = Dimensions(
    vocabulary=120, hidden=48, intermediate=64, layers=3, heads=6, groups=2, norm_eps=1e-5, max_length=512
)
VOCABULARY = SpeechVocabulary(range(10, 60), range(60, 120), 3)
WAITING = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "item", "_to_copy", "masked_select")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


class Bench:
    """A random decoder with some sequences in a state, ready to step."""

    def __init__(
        self,
        lengths: list[int],
        params: SamplingParams,
        dtype: torch.dtype = torch.float32,
        layers: Callable[[StepWeights], LayersMaker] = lambda _: PlainLayers,
        size: Dimensions = SIZE,
    ) -> None:
        torch.manual_seed(1)
        with torch.inference_mode(mode=False):
            self.decoder = Decoder(size).to(dtype).requires_grad_(False)
            self.head = SpeechHead(nn.Linear(size.hidden, 120, bias=False).weight.detach().to(dtype), VOCABULARY)
            weights = StepWeights(self.decoder)
        self.state = DecodeState(weights, len(lengths), 300)
        self.prompts = [torch.randint(4, 120, (length,)).tolist() for length in lengths]
        for row, prompt in enumerate(self.prompts):
            hidden = self.decoder(torch.tensor([prompt]), cache=self.state.cache.row(row))[0, -1]
            self.state.begin(row, prompt, hidden, uniforms(row, 200))
        self.step = Step(weights, self.head, self.state, len(lengths), params, layers=layers(weights))
        self.drawn = 0

    def draw(self, count: int) -> None:
        """Draw ``count`` more ids for every sequence."""
        for _ in range(count):
            choice = self.head.choice(self.drawn)
            if self.drawn == 0:
                self.step.draw(choice)
            else:
                self.step.run(KeyValueCache.rounded(max(map(len, self.prompts)) + self.drawn), choice)
            self.drawn += 1


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("lengths", [[30], [5, 120, 31]])
def test_states_equal_those_of_the_decoder(lengths: list[int], dtype: torch.dtype, atol: float) -> None:
    """In bfloat16 a state (of size about 1) is rounded at some fifty places on its way, in another order each."""
    bench = Bench(lengths, SamplingParams(), dtype)
    bench.draw(20)
    for row, (prompt, new) in enumerate(zip(bench.prompts, bench.state.drawn(len(lengths), 0, 20), strict=True)):
        whole = bench.decoder(torch.tensor([prompt + new[:-1]]))[0, -1]
        torch.testing.assert_close(bench.state.normed[row], whole, atol=atol, rtol=0)


def test_the_joint_weights_are_the_layers_own() -> None:
    bench = Bench([5], SamplingParams())
    before = bench.decoder(torch.tensor([[5, 6, 7]]))
    attention, mlp = bench.decoder.layers[0].self_attn, bench.decoder.layers[0].mlp
    for projections in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        assert len({p.weight.untyped_storage().data_ptr() for p in projections}) == 1
    attention.q_proj.weight.data.zero_()
    assert bench.step._weights.layers[0].joint[:, :48].abs().sum() == 0
    assert not torch.equal(bench.decoder(torch.tensor([[5, 6, 7]])), before)


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(top_k=0, repetition_rule=False),
    SamplingParams(top_k=20),
]


def allocations(work: Callable[[], None]) -> list[int]:
    """The bytes of everything that torch's allocator hands out during ``work``, freed again or not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("lengths", [[30], [5, 120, 31]])
def test_a_step_allocates_nothing(lengths: list[int], params: SamplingParams) -> None:
    """The first steps make the views; the fifteen that are watched stay within one bucket of positions."""
    bench = Bench(lengths, params)
    x = torch.ones(4)
    assert allocations(x.clone) == [16], "the profiler no longer shows what is allocated"
    bench.draw(11)
    assert allocations(lambda: bench.draw(15)) == []


def test_top_p_allocates_for_its_sorting_alone() -> None:
    bench = Bench([30, 8], SamplingParams(top_p=0.8))
    bench.draw(11)
    sorting = torch.zeros(2, 60), torch.zeros(2, 60, dtype=torch.int64)
    for _ in range(5):
        columns = len(bench.head.choices[bench.head.choice(bench.drawn)].ids)
        x, room = torch.rand(2, columns), tuple(part[:, :columns].contiguous() for part in sorting)
        alone = allocations(lambda x=x, room=room: torch.sort(x, dim=-1, descending=True, out=room))
        assert allocations(lambda: bench.draw(1)) == alone


class Watch(TorchDispatchMode):
    """Notes the operations that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("params", [*PARAMS, SamplingParams(top_p=0.8)])
def test_a_step_waits_for_no_value(params: SamplingParams) -> None:
    bench = Bench([30, 8], params)
    bench.draw(11)
    with Watch() as watch:
        bench.draw(10)
    assert len(watch.names) > 100
    assert [name for name in watch.names if any(word in name for word in WAITING)] == []
