"""What the service has done, in numbers that Prometheus reads. Each Metrics has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stepaudio.cache import CacheStats
from stepaudio.errors import InvalidInput
from stepaudio.timing import OTHER
from stepaudio.types import Stage, Synthesis

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a cache hit to the longest request on a slow computer.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0, 600.0)
RTFS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 25.0)
SPEEDS = (5.0, 10.0, 20.0, 40.0, 60.0, 100.0, 150.0, 250.0, 400.0, 700.0, 1200.0, 2000.0)

LLM = "LLM"


class Metrics:
    """Counts and histograms of requests; safe in many threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests that are over", "task", "outcome")
        self._turned_away = self._counter("requests_turned_away", "Requests that found no room in the line", "task")
        self._waited = self._seconds("queue_wait_seconds", "Waiting in the line", "task")
        self._total = self._seconds("request_seconds", "A request's whole work, without waiting in the line", "task")
        self._stages = self._seconds("stage_seconds", "One stage of a request", "task", "stage")
        self._first = self._seconds("first_sound_seconds", "From the submission of a stream to its first sound", "task")
        self._rtf = self._histogram("rtf", "Compute seconds for a second of sound", RTFS, "task")
        self._speed = self._histogram("tokens_per_second", "Speech tokens a second of the language model", SPEEDS)
        self._sound = self._counter("sound_seconds", "Seconds of sound made", "task")
        self._tokens = self._counter("tokens", "Speech tokens written by the language model")
        self._http = self._counter("http_responses", "Answers over HTTP", "method", "route", "status")

    def made(self, task: str, takes: Sequence[Synthesis], waited: float) -> None:
        """Count a request that gave a sound, or several takes with one timing; waited: its seconds in the line."""
        synthesis = takes[0]
        timings = synthesis.timings
        self._waited.labels(task).observe(waited)
        self._total.labels(task).observe(timings.total)
        for stage in _every(timings.stages):
            self._stages.labels(task, stage.name).observe(stage.seconds)
        if synthesis.first_sound is not None:
            self._first.labels(task).observe(waited + synthesis.first_sound)
        seconds = sum(take.waveform.seconds for take in takes)
        self._rtf.labels(task).observe(timings.total / seconds)
        self._sound.labels(task).inc(seconds)
        # An edit of several passes writes in each of them; an attempt for which memory did not suffice wrote nothing.
        writing = [stage for stage in _every(timings.stages) if stage.name == LLM and stage.tokens]
        tokens, spent = sum(stage.tokens for stage in writing), sum(stage.seconds for stage in writing)
        self._tokens.inc(tokens)
        if spent > 0:
            self._speed.observe(tokens / spent)

    def ended(self, task: str, state: str, error: BaseException | None) -> None:
        """Count a job that is over: done, cancelled, refused (the user can mend it) or failed."""
        self._requests.labels(task, "refused" if isinstance(error, InvalidInput) else state).inc()

    def turned_away(self, task: str) -> None:
        """Count a request that the queue did not take."""
        self._turned_away.labels(task).inc()

    def answered(self, method: str, route: str, status: int) -> None:
        """Count an answer over HTTP; route: the path with its places, not with their values."""
        self._http.labels(method, route, str(status)).inc()

    def watch(
        self,
        *,
        waiting: Callable[[], int],
        running: Callable[[], int],
        ready: Callable[[], bool],
        cache: Callable[[], CacheStats | None],
    ) -> None:
        """Read the queue and the cache whenever the numbers are asked for; once."""
        self.registry.register(_Watched(waiting, running, ready, cache))

    def render(self) -> bytes:
        """Return all numbers in Prometheus' text format, CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"stepaudio_{name}", f"{help_text}.", labels, registry=self.registry)

    def _seconds(self, name: str, help_text: str, *labels: str) -> Histogram:
        return self._histogram(name, help_text, SECONDS, *labels)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"stepaudio_{name}", f"{help_text}.", labels, registry=self.registry, buckets=buckets)


class _Watched(Collector):
    """The numbers that others keep."""

    def __init__(
        self,
        waiting: Callable[[], int],
        running: Callable[[], int],
        ready: Callable[[], bool],
        cache: Callable[[], CacheStats | None],
    ) -> None:
        self._waiting, self._running, self._ready, self._cache = waiting, running, ready, cache

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("stepaudio_queue_waiting", "Jobs that wait in the line.", value=self._waiting())
        yield GaugeMetricFamily("stepaudio_queue_running", "Jobs that run.", value=self._running())
        yield GaugeMetricFamily("stepaudio_ready", "1 once the models are loaded and warm.", value=self._ready())
        stats = self._cache()
        if stats is None:
            return
        # These survive restarts and are shared by all processes that use the folder.
        yield CounterMetricFamily("stepaudio_cache_hits", "References found in the encoder cache.", value=stats.hits)
        yield CounterMetricFamily("stepaudio_cache_misses", "References that were encoded.", value=stats.misses)
        saved = "Encode seconds that hits have saved."
        yield GaugeMetricFamily("stepaudio_cache_seconds_saved", saved, value=stats.seconds_saved)
        yield GaugeMetricFamily("stepaudio_cache_entries", "Encodings in the cache.", value=stats.entries)
        yield GaugeMetricFamily("stepaudio_cache_bytes", "Bytes of the cache.", value=stats.bytes)

    def describe(self) -> Iterable[Metric]:
        return ()


def _every(stages: tuple[Stage, ...]) -> Iterable[Stage]:
    """Return the stages and those within them; what no stage accounts for is left out."""
    for stage in stages:
        if stage.name != OTHER:
            yield stage
            yield from _every(stage.children)
