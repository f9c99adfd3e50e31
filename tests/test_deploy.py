"""The files of deploy/: their parts exist and agree, and installed tools accept them."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hart.cli import serve

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
REPOSITORY = DEPLOY.parent
INSTRUCTIONS = set("ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN USER VOLUME WORKDIR".split())


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile with their words, comments left out and lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line]


def the(name: str) -> str:
    """The words of the last instruction of that name."""
    return [words for each, words in instructions() if each == name][-1]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for name, words in instructions() if name == "ENV" for pair in shlex.split(words))


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def served(words: list[str]) -> Any:
    """What `hart serve` makes of the words; a wrong one ends the test."""
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def unit() -> dict[str, str]:
    """Key → value of the systemd unit; of several the last."""
    lines = (DEPLOY / "hart.service").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_dockerfile_has_known_instructions_and_copies_what_exists_and_is_sent() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    sent = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split() if line[0] == "!"}
    copied = {
        source
        for name, words in instructions()
        if name == "COPY" and not words.startswith("--from")
        for source in words.split()[:-1]
    }
    assert copied == sent
    assert all((REPOSITORY / source).exists() for source in copied)


def test_the_image_is_made_with_the_pinned_versions_and_runs_without_root() -> None:
    (install,) = (words for name, words in instructions() if name == "RUN" and "pip install" in words)
    assert "-c constraints.txt" in install
    assert the("USER").split(":")[0] == "1000"
    (user,) = (words for name, words in instructions() if name == "RUN" and "useradd" in words)
    assert "--uid 1000" in user and environment()["HART_CACHE"] in user


def test_the_image_serves_on_the_port_that_it_exposes_and_probes() -> None:
    args = served([*json.loads(the("ENTRYPOINT"))[2:], *json.loads(the("CMD"))])
    assert json.loads(the("ENTRYPOINT"))[:2] == ["hart", "serve"]
    assert (args.host, str(args.port)) == ("0.0.0.0", the("EXPOSE"))
    assert f"127.0.0.1:{args.port}/readyz" in the("HEALTHCHECK")
    compile(json.loads(the("HEALTHCHECK").split("CMD", 1)[1])[2], "health", "exec")


def test_the_image_keeps_all_in_its_volume() -> None:
    assert environment()["HART_CACHE"] == the("VOLUME")
    assert environment()["HF_HOME"].startswith(the("VOLUME"))


def test_compose_agrees_with_the_image_and_itself() -> None:
    whole = compose()
    (server,) = whole["services"].values()
    assert (DEPLOY / server["build"]["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / server["build"]["dockerfile"]).is_file()
    volume, place = server["volumes"][0].split(":")
    assert volume in whole["volumes"] and place == the("VOLUME")
    (port,) = server["ports"]
    assert port.rsplit(":", 1) == ["127.0.0.1:8000", the("EXPOSE")]
    args = served([*json.loads(the("ENTRYPOINT"))[2:], *server["command"]])
    (secret,) = server["secrets"]
    assert args.token_file == Path("/run/secrets") / secret
    token = (DEPLOY / whole["secrets"][secret]["file"]).resolve().relative_to(REPOSITORY)
    assert f"/{token.as_posix()}" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    assert int(server["stop_grace_period"].removesuffix("s")) > args.time_limit + 5


def test_compose_with_cuda_changes_services_that_there_are() -> None:
    cuda = compose("compose.cuda.yaml")
    assert cuda["services"].keys() <= compose()["services"].keys()
    arguments = {words.split("=")[0] for name, words in instructions() if name == "ARG"}
    assert all(each["build"]["args"].keys() <= arguments for each in cuda["services"].values())


def test_the_unit_and_the_proxies_agree() -> None:
    words = shlex.split(unit()["ExecStart"])
    assert words[:2] == ["/opt/hart/bin/hart", "serve"]
    args = served(words[2:])
    assert int(unit()["TimeoutStopSec"]) > args.time_limit + 5
    assert unit()["LoadCredential"].split(":")[0] == args.token_file.name
    assert f"HART_CACHE=/var/cache/{unit()['CacheDirectory']}" in unit()["Environment"].split()
    for name in ("nginx.conf", "Caddyfile"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        assert f"{args.host}:{args.port}" in text
        assert f"{args.root_path}/" in text
        (wait,) = re.findall(r"timeout (\d+)s", text)
        assert int(wait) > args.time_limit


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(name: str) -> str:
    found = shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    verify = tool("systemd-analyze")
    text = (DEPLOY / "hart.service").read_text(encoding="utf-8").replace("/opt/hart/bin/hart", "/bin/true")
    (tmp_path / "hart.service").write_text(text, encoding="utf-8")
    # Unknown keys are told, and are no failure of the command.
    assert "hart.service" not in run(verify, "verify", tmp_path / "hart.service")


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    nginx = tool("nginx")
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    plain = re.sub(r"\n *ssl_certificate.*", "", text.replace("listen 443 ssl", "listen 127.0.0.1:8443"))
    places = " ".join(f"{each}_temp_path {tmp_path}/{each};" for each in "client_body proxy fastcgi uwsgi scgi".split())
    whole = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {places}\n{plain} }}"
    (tmp_path / "nginx.conf").write_text(whole, encoding="utf-8")
    run(nginx, "-t", "-e", tmp_path / "errors", "-c", tmp_path / "nginx.conf")


def test_caddy_takes_its_file() -> None:
    run(tool("caddy"), "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile")


def test_hadolint_has_no_complaint() -> None:
    run(tool("hadolint"), DEPLOY / "Dockerfile")
