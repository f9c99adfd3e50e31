"""hart serve: a model as an HTTP server on this machine."""

import argparse
import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

from hart.cli.options import MODEL_HELP, add_base, add_device, add_dtype, positive, select_device, text
from hart.cli.printing import say, tell
from hart.errors import HartError
from hart.runtime.launch import on_sigterm

TEXTS = {"--token": 1}
"""Options whose values are texts (`hart.cli.options.keep_texts`)."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP, with a page to try it on",
        description="""\
Serve a model: POST a definition and demonstrations, get the id of an adaptation, ask it queries.
Requests of different tasks share a batch. The page at / tries it out, /docs describes the interface.
Only this machine can connect unless --host says otherwise. On SIGTERM what was accepted is finished.""",
        epilog="""\
examples:
  hart serve mini
  hart serve runs/hart/final --port 9000 --max-batch 64
  HART_TOKEN=secret hart serve mini --host 0.0.0.0""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--token", type=text, help="bearer token that clients must send (default: HART_TOKEN, or none)")
    tokens.add_argument("--token-file", metavar="F", type=Path, help="file that holds the token, and nothing else")
    parser.add_argument("--store", metavar="DIR", type=Path, help="where adaptations are kept (default: in HART_CACHE)")
    parser.add_argument(
        "--store-size", metavar="MIB", type=positive, default=2048, help="limit of the store (default: %(default)s MiB)"
    )
    parser.add_argument(
        "--max-batch", metavar="N", type=positive, default=32, help="rows answered together (default: %(default)s)"
    )
    parser.add_argument(
        "--max-wait",
        metavar="MS",
        type=_number,
        default=5,
        help="an idle model waits for more rows (default: %(default)s ms)",
    )
    parser.add_argument(
        "--max-queue", metavar="N", type=positive, default=1024, help="rows that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--time-limit", metavar="S", type=_number, default=60, help="for one request (default: %(default)s s)"
    )
    parser.add_argument("--no-mixing", action="store_true", help="one task per batch, to measure what mixing gains")
    parser.add_argument(
        "--access-log",
        choices=("off", "text", "json"),
        default="off",
        help="print a line for each request, without its texts; standard output must then be read "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let pages of that site, https://name:port, use the server; * for all; repeat it (default: none)",
    )
    parser.add_argument(
        "--root-path",
        metavar="PATH",
        type=_root,
        default="",
        help="prefix that a proxy removes from paths, such as /hart",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse fields of OpenAI's interface that are not known here, instead of naming them in x-hart-ignored",
    )
    add_base(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.model.hart_model import HartModel
    from hart.serving.access import write_lines
    from hart.serving.app import create_app
    from hart.serving.settings import Settings
    from hart.serving.store import Store

    kept = None if args.token_file is None else _read_token(args.token_file)
    token = args.token or kept or os.environ.get("HART_TOKEN") or None
    loopback = args.host in LOOPBACK
    settings = Settings(
        max_batch=args.max_batch,
        max_wait=args.max_wait / 1000,
        max_queue=args.max_queue,
        time_limit=args.time_limit,
        mixing=not args.no_mixing,
        token=token,
        loopback=loopback,
        cors_origins=tuple(args.cors_origin),
        strict=args.strict,
    )
    # Opened before the model is loaded, which may take long.
    listener = _listen(args.host, args.port)
    store = Store(args.store, max_bytes=args.store_size * 1024**2)
    model = HartModel.from_pretrained(args.model, base=args.base, dtype=args.dtype, device=select_device(args.device))
    if not loopback and token is None:
        tell(f"hart: warning: everyone who reaches {args.host} can use this server and read its tasks; set --token")
    if token is None and "*" in args.cors_origin:
        tell("hart: warning: pages of any site can use this server and read its tasks; set --token")
    address = f"[{args.host}]" if ":" in args.host else args.host
    say(
        f"serving {args.model} on http://{address}:{listener.getsockname()[1]} (Ctrl-C ends); "
        f"{f'behind {args.root_path}; ' if args.root_path else ''}"
        f"{model.main.name}, {model.device}, {str(model.main.model.dtype).removeprefix('torch.')}; "
        f"{args.max_batch} rows a batch, {args.max_queue} waiting, {args.time_limit:g} s a request; "
        f"store {store.folder}, {args.store_size} MiB"
    )
    write_lines(args.access_log, sys.stdout)
    _serve(create_app(model, store, settings), listener, settings.time_limit, args.root_path)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
        open_to_all = path.stat().st_mode & stat.S_IROTH
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise HartError(f"--token-file: {path} cannot be read ({why})") from error
    if not token or len(token.split()) != 1:
        raise HartError(f"--token-file: {path} must hold the token in one line, without white space, and nothing else")
    if open_to_all:
        tell(f"hart: warning: all users of this machine can read the token in {path}; chmod 600 it")
    return token


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit TCP_NODELAY. asyncio sets it only for sockets with an explicit TCP protocol; without it,
        # the second part of a reply waits 40 ms for the client's acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise HartError(
                f"--port {port}: is in use by another program; give another port, or 0 for a free one"
            ) from error
        raise HartError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from error


def _serve(app: Any, listener: socket.socket, time_limit: float, root_path: str) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # our own has more fields
        root_path=root_path,
        # Accepted requests are answered within the time limit, or not at all.
        timeout_graceful_shutdown=int(time_limit) + 5,
        limit_concurrency=2048,
        # Longer than proxies keep idle connections (nginx: 60 s), so that none uses a connection just closed here.
        timeout_keep_alive=75,
        server_header=False,
    )
    # uvicorn raises the signal again at its end; a server stopped by SIGTERM has not failed.
    with on_sigterm():
        uvicorn.Server(config).run(sockets=[listener])


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not '{text}'")
    return int(text)


def _root(text: str) -> str:
    if text and (not text.startswith("/") or text.endswith("/")):
        raise argparse.ArgumentTypeError(f"must begin with / and not end with it, not '{text}'")
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not '{text}'")
    return value
