"""The API under load and under clients that leave, as long as it takes; see load.py and storm.py."""

from __future__ import annotations

import pytest

from tests.proofs import load, storm
from tests.proofs.kit import write


@pytest.mark.proof
def test_many_clients_at_once_for_five_minutes():
    result = load.measure(32, 300.0)
    write("load", result, "scripts/proof tests/proofs/test_api.py")
    load.check(result)


@pytest.mark.proof
def test_hundreds_of_requests_dropped_at_any_moment_leave_nothing_behind():
    result = storm.measure(200)
    write("storm", result, "scripts/proof tests/proofs/test_api.py")
    storm.check(result)
