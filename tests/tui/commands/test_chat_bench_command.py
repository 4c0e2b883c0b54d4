"""`bench chat` as it is typed; what it measures is in test_latency_benchmark.py."""

import json
import os

import pytest

from tui.cli import execute

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
if os.name == "posix":
    from tui.chat import latency_benchmark
    from tui.chat.latency_benchmark import ChatLatencyReport, KeyLatency


def test_options_reach_the_app_and_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    latency = KeyLatency(5, 0.01, 0.02, 0.03)

    def measure(options: list[str], *, num_keys: int):  # type: ignore[no-untyped-def]
        seen.append((options, num_keys))
        yield "first paint"
        yield ChatLatencyReport(0.5, 3.0, latency, latency, 1)

    monkeypatch.setattr(latency_benchmark, "run_latency_benchmark", measure)
    assert execute(["bench", "chat", "--target", "x", "--draft", "none", "--keys", "5"]) == 0
    assert seen == [(["--target=x", "--draft=none", "--max-new-tokens=1024"], 5)]
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["while_computing"]["p99_seconds"] == 0.02
