"""llm/prefixes.py: bounded in bytes, the least recently used goes, safe for threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from stepaudio.llm.prefixes import PrefixStore


def cells(value: float, bytes_: int = 400) -> torch.Tensor:
    return torch.full((bytes_ // 4,), value)


def test_what_is_kept_is_a_copy_and_found_by_exactly_its_ids() -> None:
    store, kept = PrefixStore(1000), cells(1.0)
    store.put([1, 2, 3], kept)
    kept.zero_()
    assert torch.equal(store.get((1, 2, 3)), cells(1.0))
    for ids in ([1, 2], [1, 2, 3, 4], [1, 2, 4], []):
        assert store.get(ids) is None


def test_the_least_recently_used_goes_and_the_bound_holds() -> None:
    store = PrefixStore(1000)
    store.put([1], cells(1.0))
    store.put([2], cells(2.0))
    assert store.get([1]) is not None
    store.put([3], cells(3.0))
    assert store._bytes() == 800
    assert store.get([2]) is None
    assert store.get([1])[0] == 1.0
    assert store.get([3])[0] == 3.0
    store.put([3], cells(3.0, 900))
    assert store._bytes() == 900


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    store = PrefixStore(500)
    store.put([1], cells(1.0))
    store.put([2], cells(2.0, 504))
    assert store.get([2]) is None
    assert store.get([1]) is not None
    nothing = PrefixStore(0)
    nothing.put([1], cells(1.0, 4))
    assert nothing._bytes() == 0


def test_threads_share_it_within_its_bound() -> None:
    store = PrefixStore(2000)

    def work(number: int) -> bool:
        found = store.get([number % 9])
        store.put([number % 9], cells(float(number % 9)))
        return found is None or bool((found == number % 9).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(2000)))
    assert 0 < store._bytes() <= 2000
