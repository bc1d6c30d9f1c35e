"""What measures the Space, in its short forms."""

from __future__ import annotations

import browser
import pytest

if browser.why_not():
    pytest.skip(browser.why_not(), allow_module_level=True)

from spaces import measure


@pytest.fixture(scope="module")
def served():
    with browser.serving("--device", "cpu") as found:
        yield found


def test_times_are_those_a_page_tells(served):
    address, _ = served
    loaded = measure.page_load(address, 1)
    assert loaded["count"] == 1 and 0.05 < loaded["median"] < 60
    found = measure.sliding(address, previews=6, full=2)
    assert found["preview_seconds"]["count"] == 6 and found["full_picture_seconds"]["count"] == 2
    assert 0.005 < found["preview_seconds"]["median"] <= found["preview_seconds"]["longest"]
    assert 0 < found["drag"]["pictures"] <= found["drag"]["inputs"]


def test_many_visitors_are_counted(served):
    address, process = served
    found = measure.visitors(address, process.pid, count=3, seconds=2)
    assert found["failures"] == 0, found["failures_in_words"]
    assert found["requests_done"] == found["latency_seconds"]["count"] >= 3
    assert set(found["latency_seconds_by_endpoint"]) <= {"/generate", "/mix", "/edit", "/inside"}
    assert 100 < found["server_mib"]["before"] <= found["server_mib"]["peak"]


def test_a_failure_is_none_of_the_refusals(served, monkeypatch):
    address, process = served
    monkeypatch.setattr(measure, "requests_of", lambda named: [("/generate", lambda seed: {"seed": -1})])
    found = measure.visitors(address, process.pid, count=1, seconds=0.2)
    assert found["failures"] >= 1 and found["requests_done"] == found["refused_by_the_full_queue"] == 0
    assert "the seed is -1" in found["failures_in_words"][0]


def test_a_flood_is_refused_beyond_the_queue_and_the_page_lives_on(served):
    address, process = served
    found = measure.flood(address, process.pid, 200)
    assert found["accepted"] + found["refused_by_the_full_queue"] == 200 and found["failures"] == 0
    assert found["refused_by_the_full_queue"] > 0 and found["then_a_picture_in_seconds"] < 60


def test_spread_and_memory():
    found = measure.spread([3.0, 1.0, None, 2.0])
    assert found == {"count": 3, "missing": 1, "median": 2.0, "p95": 3.0, "longest": 3.0}
    assert measure.spread([None]) == {"count": 0, "missing": 1}
    seen = [(second, 100.0 + second) for second in range(100)]
    short = measure.in_short(seen)
    assert short == {"before": 100.0, "after": 199.0, "peak": 199.0, "trend_per_minute": 60.0}
