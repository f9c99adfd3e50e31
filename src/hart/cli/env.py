"""hart env: versions, devices and settings of the machine for a bug report."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from hart.cli.printing import say


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "env",
        help="versions, devices and settings of this machine, for a bug report",
        description="""\
Print what a bug report should say: versions of hart and the libraries that it uses, the system, devices,
environment variables that matter, cache folders. Tokens are never shown. It also works where torch is missing
or broken, and says so.""",
        epilog="""\
examples:
  hart env
  hart env --json > env.json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run, light=True)


def run(args: argparse.Namespace) -> None:
    from hart.runtime.environment import environment

    found = environment()
    if args.json:
        say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:{width}}  {value}")


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    hart, python, system, torch = (found[name] for name in ("hart", "python", "system", "torch"))
    commit = f", commit {hart['commit']}" if hart["commit"] else ""
    yield "hart", f"{hart['version'] or 'not installed'}{commit}, {hart['folder']}"
    yield "python", f"{python['version']}, {python['executable']}"
    yield "system", f"{system['platform']}, {system['machine']}"
    memory = "unknown" if system["memory_gib"] is None else f"{system['memory_gib']} GiB"
    yield "machine", f"{system['cpus']} CPUs, {system['cpus_usable']} usable, memory {memory}"
    for name, version in found["packages"].items():
        yield name, version or "–"
    if "problem" in torch:
        yield "torch works", f"no: {torch['problem']}"
    else:
        groups = ", ".join(name for name in ("gloo", "nccl") if torch[name]) or "none"
        yield "torch works", f"yes, {torch['threads']} threads, {torch['cpu']}, process groups: {groups}"
        yield "CUDA", torch["cuda"] or "–"
        for number, gpu in enumerate(torch["gpus"]):
            half = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
            yield f"cuda:{number}", f"{gpu['name']}, {gpu['memory_gib']} GiB, {half}"
    for name, value in found["environment"].items():
        yield name, value
    for name, folder in found["caches"].items():
        yield f"cache of {name}", folder or "unknown"
