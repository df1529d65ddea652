"""The served description of the API holds whatever is sent: schemathesis makes requests of it, good and bad ones."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.kit import RECORDING

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
FEW, MANY = 3, 60


@pytest.fixture
def described(url, ada):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def bounded(examples: int) -> settings:
    """Return how hypothesis goes about it: the same requests each time, none too slow."""
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )


schema = schemathesis.pytest.from_fixture("described")
taking = schema.include(method="POST")


@schema.parametrize()
@bounded(FEW)
def test_no_request_makes_the_server_fail_or_break_its_own_description(case):
    case.call_and_validate(checks=CHECKS)


@taking.parametrize()
@bounded(FEW)
def test_nor_does_one_that_reaches_the_models(case):
    fill_in(case)
    case.call_and_validate(checks=[check for check in CHECKS if check is not negative_data_rejection])


@pytest.mark.proof
@schema.parametrize()
@bounded(MANY)
def test_no_request_of_many(case):
    case.call_and_validate(checks=CHECKS)


@pytest.mark.proof
@taking.parametrize()
@bounded(MANY)
def test_none_of_many_that_reach_the_models(case):
    fill_in(case)
    case.call_and_validate(checks=[check for check in CHECKS if check is not negative_data_rejection])


def fill_in(case: schemathesis.Case) -> None:
    """Put in what no chance finds: a voice that is there, a model, a recording; and little to make."""
    if not isinstance(case.body, dict):
        return
    body: dict[str, Any] = case.body
    known = {"voice": "Ada", "audio": RECORDING, "file": RECORDING, "model": "whisper-1" if "file" in body else "tts-1"}
    body.update({name: value for name, value in known.items() if name in body})
    short = {"max_seconds": 0.24, "flow_steps": 1}
    if case.path in ("/v1/audio/speech", "/v1/batch"):
        options = body.get("stepaudio")
        body["stepaudio"] = {**(options if isinstance(options, dict) else {}), **short}
    elif case.path == "/stream":
        body.update(short)
    elif case.path == "/v1/audio/edits":
        body.pop("audio", None)
        body.update({**short, "passes": 1, "voice": "Ada"})
