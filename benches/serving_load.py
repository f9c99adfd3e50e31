"""Load test of `hart serve` by many clients, with and without mixing tasks in one batch.

    python benches/serving_load.py --clients 200 --seconds 60

Each variant has a separate server process on loopback. One client process runs for --seconds; each client sends its
next query, of a task drawn at random from the bundled collection, after its last answer. Every reply is compared with
the local model's answer to the same query of the same task. A different reply counts as wrongly adapted if it is the
answer of another task to this query. Failed requests are counted by status. The server's resident memory is sampled
every second.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil

from hart import HartModel
from hart.data.procedural import load_procedural


class Local:
    """The tasks, and the local model's answers."""

    def __init__(self, model: str, tasks: int, queries: int) -> None:
        self._model = HartModel.from_pretrained(model, device="cpu")
        # The unseen tasks first, then as many training tasks as needed.
        known = load_procedural("test", max_instances=queries) + load_procedural("train", max_instances=queries)
        chosen = known[:tasks]
        self._adaptations = [self._model.adapt(task) for task in chosen]
        self.queries = [[instance.input for instance in task.instances] for task in chosen]
        self.answers = [
            self._model.generate(asked, adaptation, batch_size=1)
            for asked, adaptation in zip(self.queries, self._adaptations, strict=True)
        ]
        self.tasks = [
            {
                "definition": task.definition,
                "demonstrations": [{"input": each.input, "output": each.output} for each in task.demonstrations],
            }
            for task in chosen
        ]

    def is_of_another(self, task: int, query: str, answer: str) -> bool:
        """Whether one of the other tasks gives this answer to the query."""
        others = (each for number, each in enumerate(self._adaptations) if number != task)
        return any(self._model.generate(query, each) == [answer] for each in others)


class Server:
    """A context with `hart serve` on a free port, with its address and process."""

    def __init__(self, model: str, *options: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        words = [
            "-m",
            "hart",
            "serve",
            model,
            "--port",
            "0",
            "--store",
            self._folder.name,
            *options,
        ]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        match = re.search(r"http://\S+", self.process.stdout.readline())
        if match is None:
            raise SystemExit("the server did not start")
        self.address = match[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.status = self.process.wait()
        self._folder.cleanup()


async def load(server: Server, local: Local, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    wrong: list[tuple[int, str, str]] = []
    resident = psutil.Process(server.process.pid)
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=server.address, timeout=120, limits=limits) as http:
        ids = []
        for task in local.tasks:
            reply = await http.post("/v1/adaptations", json=task)
            ids.append(reply.raise_for_status().json()["id"])
        start = time.monotonic()

        async def client(number: int) -> None:
            chance = random.Random(seed * 100_003 + number)
            while time.monotonic() - start < seconds:
                which = chance.randrange(len(ids))
                row = chance.randrange(len(local.queries[which]))
                query, expected = local.queries[which][row], local.answers[which][row]
                sent = time.monotonic()
                outcomes["sent"] += 1
                try:
                    reply = await http.post("/v1/generate", json={"inputs": [query], "adaptation": ids[which]})
                except httpx2.HTTPError as error:
                    outcomes[f"lost: {type(error).__name__}"] += 1
                    continue
                if reply.status_code != 200:
                    outcomes[f"status {reply.status_code}"] += 1
                    continue
                latencies.append(time.monotonic() - sent)
                (answer,) = reply.json()["outputs"]
                outcomes["right" if answer == expected else "different"] += 1
                if answer != expected:
                    wrong.append((which, query, answer))

        async def watch() -> None:
            while True:
                memory.append((round(time.monotonic() - start, 1), resident.memory_info().rss / 2**20))
                await asyncio.sleep(1.0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(number) for number in range(clients)))
        took = time.monotonic() - start
        watching.cancel()
        text = (await http.get("/metrics")).text
    outcomes["wrongly adapted"] = sum(local.is_of_another(*each) for each in wrong)
    cuts = statistics.quantiles(latencies, n=100)
    count = metric(text, 'hart_batch_rows_count{kind="generate"}')
    return {
        "requests_per_second": round(len(latencies) / took, 1),
        "p50_ms": round(1000 * cuts[49], 1),
        "p99_ms": round(1000 * cuts[98], 1),
        "outcomes": dict(outcomes),
        "rows_per_batch": round(metric(text, 'hart_batch_rows_sum{kind="generate"}') / count, 2),
        "tasks_per_batch": round(metric(text, 'hart_batch_tasks_sum{kind="generate"}') / count, 2),
        "seconds": round(took, 1),
        "memory_mib": memory,
    }


def metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tasks", type=int, default=28)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    local = Local(args.model, args.tasks, args.queries)
    results: dict[str, Any] = {}
    for way, options in (("mixing", []), ("one task per batch", ["--no-mixing"])):
        with Server(args.model, *options) as server:
            # A separate warm-up, which is not counted.
            asyncio.run(load(server, local, args.clients, min(5.0, args.seconds / 4), args.seed + 1))
            found = results[way] = asyncio.run(load(server, local, args.clients, args.seconds, args.seed))
        found["exit_status"] = server.status
        memory = [size for _, size in found["memory_mib"]]
        third = max(1, len(memory) // 3)
        print(
            f"{way}: {found['requests_per_second']} requests/s, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms, "
            f"{found['rows_per_batch']} rows of {found['tasks_per_batch']} tasks a batch, {found['outcomes']}, "
            f"memory {statistics.mean(memory[:third]):.0f} MiB in the first third, "
            f"{statistics.mean(memory[-third:]):.0f} in the last, exit status {found['exit_status']}",
            flush=True,
        )
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(
            json.dumps({"settings": settings, "results": results}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
