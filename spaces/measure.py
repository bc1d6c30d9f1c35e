"""How fast the Space is, and what it bears: `python -m spaces.measure`, in the clone, on a machine at rest.

It starts the Space with the built-in model, opens it in Chromium, sends many visitors through gradio_client,
and writes model_cards/benchmarks/space.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gradio_client
import psutil

from stylenat_hub.benchmark import machine
from stylenat_hub.files import whole_file
from stylenat_hub.pipeline import MAX_SEED
from tests import browser

OUTPUT = Path(__file__).resolve().parent.parent / "model_cards" / "benchmarks" / "space.json"
MIB = 1 << 20
EVERY = 0.25  # seconds between two looks at the memory
PATIENCE = 60.0  # seconds for what a page shows
# Told by the page itself, in milliseconds from when its address was asked for: its first picture can be seen.
FIRST = """new Promise((resolve) => { const look = () => {
  const image = document.querySelector('#picture img');
  if (image?.complete && image.naturalWidth) resolve(performance.now()); else requestAnimationFrame(look);
}; look(); })"""
# One after another: values of the truncation slider, each as soon as the picture of the one before is there.
PREVIEWS = """async ([values, patience]) => {
  const slider = document.querySelector('#truncation input[type=range]'), times = [];
  for (const value of values) {
    const before = document.querySelector('#picture img').src, start = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    let image, late = false;
    do {
      await new Promise(requestAnimationFrame);
      image = document.querySelector('#picture img');
      late = performance.now() - start > patience;
    } while (!late && (!image || image.src === before || !image.complete || !image.naturalWidth));
    times.push(late ? null : performance.now() - start);
  }
  return times;
}"""
# A hand that moves it all the time: a new value with every frame, for so many milliseconds.
DRAG = """async ([values, length]) => {
  const slider = document.querySelector('#truncation input[type=range]'), start = performance.now();
  let pictures = 0, last = document.querySelector('#picture img').src, step = 0, changed = start, longest = 0;
  while (performance.now() - start < length) {
    slider.value = values[step++ % values.length];
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await new Promise(requestAnimationFrame);
    const image = document.querySelector('#picture img');
    if (image && image.src !== last && image.complete) {
      pictures++; last = image.src;
      longest = Math.max(longest, performance.now() - changed); changed = performance.now();
    }
  }
  return { pictures, inputs: step, longest };
}"""
# From Random to the whole picture, whose file is named after its seed, as no preview is.
FULL = r"""async (patience) => {
  const before = document.querySelector('#picture img').src, start = performance.now();
  document.querySelector('#dice').click();
  const there = (image) => image?.complete && image.src !== before && /seed\d{10}\.png$/.test(image.src);
  while (performance.now() - start < patience && !there(document.querySelector('#picture img')))
    await new Promise(requestAnimationFrame);
  return there(document.querySelector('#picture img')) ? performance.now() - start : null;
}"""


def spread(seconds: list[float | None]) -> dict[str, Any]:
    """How many, the median, the value that 95 % stay below, the longest; missing: how many never came."""
    there = sorted(value for value in seconds if value is not None)
    found: dict[str, Any] = {"count": len(there), "missing": len(seconds) - len(there)}
    if there:
        at = min(len(there) - 1, int(0.95 * len(there)))
        found |= {"median": round(statistics.median(there), 4), "p95": round(there[at], 4)}
        found["longest"] = round(there[-1], 4)
    return found


def from_process_start(repeats: int) -> dict[str, Any]:
    """Seconds until the page answers, and until a waiting browser shows its first picture."""
    answered, shown = [], []
    for _ in range(repeats):
        with browser.chromium() as waiting:
            start = time.perf_counter()
            with browser.space("--device", "cpu") as address:
                answered.append(time.perf_counter() - start)
                with browser.visit(address, browser=waiting) as visit:
                    visit.page.evaluate(FIRST)
                    shown.append(time.perf_counter() - start)
    return {"until_it_answers": spread(answered), "until_the_first_picture": spread(shown)}


def page_load(address: str, repeats: int) -> dict[str, Any]:
    """Seconds from asking for the page to its first picture, each time in a new browser."""
    times = []
    for _ in range(repeats):
        with browser.visit(address) as visit:
            times.append(visit.page.evaluate(FIRST) / 1000)
    return spread(times)


def sliding(address: str, previews: int, full: int) -> dict[str, Any]:
    """In the browser: from a slider's event to the picture that follows, and from Random to its picture."""
    values = [round(0.05 + 0.8 * (step % 2) + 0.6 * step / max(previews, 1), 3) for step in range(previews)]
    with browser.visit(address) as visit:
        visit.page.evaluate(FIRST)
        visit.page.wait_for_timeout(1000)  # the page has come to rest
        following = visit.page.evaluate(PREVIEWS, [values, PATIENCE * 1000])
        hand = visit.page.evaluate(DRAG, [values, 100 * previews])
        visit.page.wait_for_timeout(1000)
        whole = [visit.page.evaluate(FULL, PATIENCE * 1000) for _ in range(full)]
    return {
        "preview_seconds": spread([one and one / 1000 for one in following]),
        "drag": {
            "seconds": previews / 10,
            "inputs": hand["inputs"],
            "pictures": hand["pictures"],
            "longest_wait": round(hand["longest"] / 1000, 4),
        },
        "full_picture_seconds": spread([one and one / 1000 for one in whole]),
    }


@contextlib.contextmanager
def memory_of(pid: int) -> Iterator[list[tuple[float, float]]]:
    """(seconds, MiB resident) of a process and its children, as they are while this is entered."""
    process, seen, done = psutil.Process(pid), [], threading.Event()
    start = time.perf_counter()

    def look() -> None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        seen.append((time.perf_counter() - start, total / MIB))

    def watch() -> None:
        while not done.wait(EVERY):
            look()

    look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        look()


def in_short(seen: list[tuple[float, float]]) -> dict[str, Any]:
    """Before, after, the peak, and the second half's trend in MiB per minute (least squares): flat or not."""
    half = [one for one in seen if one[0] >= seen[-1][0] / 2]
    trend = 0.0
    if len({second for second, _ in half}) > 1:
        trend = statistics.linear_regression(*zip(*half, strict=True)).slope * 60
    memory = [mib for _, mib in seen]
    found = {"before": memory[0], "after": memory[-1], "peak": max(memory), "trend_per_minute": trend}
    return {name: round(value, 1) for name, value in found.items()}


def requests_of(named: dict[str, Any]) -> list[tuple[str, Callable[[int], dict[str, Any]]]]:
    """What a visitor asks for, of what the page offers: mostly pictures."""
    wanted: list[tuple[str, Callable[[int], dict[str, Any]]]] = [
        ("/generate", lambda seed: {"seed": seed, "truncation": 0.7}),
        ("/mix", lambda seed: {"seed_a": seed, "seed_b": seed // 2, "levels": "fine", "truncation": 0.7}),
        ("/generate", lambda seed: {"seed": seed, "count": 1 + seed % 4}),
        ("/edit", lambda seed: {"seed": seed, "strengths": f"{seed % 5 - 2}", "truncation": 0.7}),
        ("/inside", lambda seed: {"seed": seed, "x": seed % 10 / 10, "y": 0.5}),
    ]
    return [one for one in wanted if one[0] in named]


def visitors(address: str, pid: int, count: int, seconds: float) -> dict[str, Any]:
    """`count` programs at once, each with one request after the other. refused: by the full queue, which is
    announced. failures: everything else that went wrong, in words."""
    times: dict[str, list[float | None]] = {}
    refused, failures, guard = 0, [], threading.Lock()

    def go(number: int, client: gradio_client.Client, end: float) -> None:
        nonlocal refused
        dice = random.Random(number)
        asked = requests_of(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
        step = number
        while time.perf_counter() < end:
            name, arguments = asked[step % len(asked)]
            step += 1
            start = time.perf_counter()
            try:
                client.predict(api_name=name, **arguments(dice.randrange(MAX_SEED // 2)))
            except gradio_client.utils.QueueError:
                with guard:
                    refused += 1
                time.sleep(1)  # come back later, as one is told
            except Exception as error:  # noqa: BLE001  whatever it is, it counts
                with guard:
                    failures.append(f"{name}: {type(error).__name__}: {error}"[:200])
            else:
                with guard:
                    times.setdefault(name, []).append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:
        clients = list(pool.map(lambda _: _client(address, folder), range(count)))
        with memory_of(pid) as seen:
            start = time.perf_counter()
            for job in [pool.submit(go, n, client, start + seconds) for n, client in enumerate(clients)]:
                job.result()
            took = time.perf_counter() - start
    done = [one for several in times.values() for one in several]
    return {
        "visitors": count,
        "seconds": round(took, 1),
        "requests_done": len(done),
        "requests_per_second": round(len(done) / took, 2),
        "refused_by_the_full_queue": refused,
        "failures": len(failures),
        "failures_in_words": sorted(set(failures))[:10],
        "latency_seconds": spread(done),
        "latency_seconds_by_endpoint": {name: spread(several) for name, several in sorted(times.items())},
        "server_mib": in_short(seen),
    }


def _client(address: str, folder: str) -> gradio_client.Client:
    return gradio_client.Client(address, verbose=False, download_files=folder)


def flood(address: str, pid: int, count: int) -> dict[str, Any]:
    """`count` requests for pictures without waiting for any answer: what the queue takes, what it refuses,
    when it is empty again, and whether the page then answers."""
    with urllib.request.urlopen(f"{address}/config", timeout=PATIENCE) as answer:
        config = json.load(answer)
    (function,) = [one["id"] for one in config["dependencies"] if one.get("api_name") == "generate"]

    def send(number: int) -> int:
        body = {
            "data": [number, 1, 0.7, 0, 0, "toy-church"],
            "fn_index": function,
            "session_hash": f"f{number}",
        }
        request = urllib.request.Request(
            f"{address}/gradio_api/queue/join",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    with memory_of(pid) as seen, ThreadPoolExecutor(32) as pool:
        start = time.perf_counter()
        codes = list(pool.map(send, range(count)))
        sent = time.perf_counter() - start
        while _waiting(address):
            time.sleep(0.1)
        empty = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        _client(address, folder).predict(seed=1, api_name="/generate")
        after = time.perf_counter() - start
    known = {200: "accepted", 503: "refused_by_the_full_queue"}
    return {
        "requests": count,
        **{name: codes.count(code) for code, name in known.items()},
        "failures": sum(code not in known for code in codes),
        "sent_in_seconds": round(sent, 2),
        "queue_empty_after_seconds": round(empty, 2),
        "then_a_picture_in_seconds": round(after, 2),
        "server_mib": in_short(seen),
    }


def _waiting(address: str) -> int:
    with urllib.request.urlopen(f"{address}/gradio_api/queue/status", timeout=PATIENCE) as answer:
        return json.load(answer)["queue_size"]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, in the order of what a visitor meets: some minutes beside what the visitors take."""
    facts: dict[str, Any] = {"command": " ".join(["python -m spaces.measure", *sys.argv[1:]])}
    facts |= {"machine": {**machine("cpu"), **_versions()}, "load_before": round(os.getloadavg()[0], 2)}
    _tell("from the start of the process")
    facts["from_process_start_seconds"] = from_process_start(given.repeats)
    with browser.serving("--device", "cpu") as (address, process):
        _tell("from loading the page")
        facts["from_page_load_to_first_picture_seconds"] = page_load(address, given.repeats)
        _tell("sliders")
        facts |= sliding(address, given.previews, given.repeats * 3)
        _tell(f"{given.visitors} visitors for {given.seconds:g} s")
        facts["many_visitors"] = visitors(address, process.pid, given.visitors, given.seconds)
        _tell(f"{given.queued} requests at once")
        facts["flood"] = flood(address, process.pid, given.queued)
    return facts


def _tell(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr)


def _versions() -> dict[str, str]:
    with browser.chromium() as started:
        return {
            "gradio": version("gradio"),
            "chromium": started.version,
            "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
        }


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=5, help="starts, page loads, and thrice as many pictures"
    )
    parser.add_argument("--previews", type=int, default=60)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120, help="that the visitors stay")
    parser.add_argument("--queued", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(line)


def main() -> None:
    if browser.why_not():
        raise SystemExit(f"error: {browser.why_not()}")
    given = arguments()
    facts = measure(given)
    with whole_file(given.output) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
