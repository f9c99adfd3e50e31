"""hart config: the resolved configuration of a run, and the JSON schema of configurations."""

import argparse
from pathlib import Path
from typing import Any

from hart.cli.options import read_configuration
from hart.cli.printing import say
from hart.errors import HartError

OWN_OPTIONS = ("--help", "--output")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "config",
        help="show a configuration with all its fields, or the schema that editors read",
        description="""\
Show what a configuration comes to, or write the JSON schema of its four sections: an editor that reads it
completes and checks the fields. A file names it in a comment, "# yaml-language-server: $schema=FILE".""",
        epilog="""\
examples:
  hart config show configs/mini/hart_sni.yaml --training.max_steps 4
  hart config schema --output schema.json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="{show,schema}", required=True)
    show = commands.add_parser(
        "show",
        help="all fields of a configuration, as YAML",
        usage="hart config show CONFIG.yaml [--section.field VALUE ...]",
        allow_abbrev=False,
    )
    show.add_argument("config", metavar="CONFIG.yaml")
    show.set_defaults(read=read_configuration, run=run_show, light=True)  # no torch
    schema = commands.add_parser("schema", help="the JSON schema of every configuration", allow_abbrev=False)
    schema.add_argument("--output", metavar="FILE", type=Path, help="default: standard output")
    schema.set_defaults(run=run_schema)


def run_show(args: argparse.Namespace) -> None:
    say(args.configuration.to_yaml(), end="")


def run_schema(args: argparse.Namespace) -> None:
    from hart.runtime.files import write_text
    from hart.training.config import json_schema

    if args.overrides:
        raise HartError(f"config schema: unknown option {args.overrides[0]} (see hart config schema --help)")
    if args.output is None:
        say(json_schema(), end="")
    else:
        write_text(args.output, json_schema())
