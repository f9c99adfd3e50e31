"""hart export: convert an adaptation into a format for other programs."""

import argparse
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import add_base, add_overwrite, load_base
from hart.cli.printing import say
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.model.adaptation import Adaptation

logger = logging.getLogger(__name__)

# Format → the file that marks a folder as an earlier export in this format.
FORMATS = {"peft": "hart_export.json", "merged": "hart_export.json", "safetensors": "adaptation.json"}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="turn an adaptation into a PEFT adapter, a merged base or a folder to hand on",
        description="""\
Write an adaptation in a form that others read:
  peft         adapter_config.json and adapter_model.safetensors for PeftModel.from_pretrained
  merged       the base with the generated LoRA or (IA)3 in its weights, a plain checkpoint in float32
  safetensors  the folder that hart adapt writes and hart predict takes, for an adaptation of the store
LoRA and (IA)3 are exported exactly, and so are the prefixes of a decoder-only base and a memory in front of its
queries, which becomes rows of a prefix (with rotary positions and no sliding window). A T5's memory, its encoder's
prefixes and the exact place of its decoder's have no counterpart there: losses are named, and accepted with
--lossy.""",
        epilog="""\
examples:
  hart export adaptations/reverse --format peft --output-dir peft/reverse
  hart export adaptations/reverse --format merged --output-dir t5-reverse""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("adaptation", metavar="A", help="folder that hart adapt wrote, or an id of the store")
    parser.add_argument("--format", choices=FORMATS, required=True, help="see above")
    parser.add_argument("--output-dir", metavar="P", type=Path, required=True, help="folder for the export")
    add_overwrite(parser, "the export of another adaptation")
    parser.add_argument("--lossy", action="store_true", help="export although parts are lost, and name them")
    add_base(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.model.export import (
        import_peft,
        refuse_loss,
        refuse_unmergeable,
        save_merged,
        save_peft,
        what_is_lost,
    )
    from hart.runtime.files import check_folder_target

    check_folder_target(args.output_dir, replaces=FORMATS[args.format])
    adaptation = _load(args.adaptation)
    if args.format == "safetensors":
        adaptation.save_pretrained(args.output_dir, overwrite=args.overwrite)
    else:
        import_peft()
        if args.format == "merged":
            refuse_unmergeable(adaptation)
        refuse_loss(adaptation, args.lossy)
        # Checked before the base is loaded, which may take long.
        main = load_base(adaptation, args.base, dtype="float32")
        if args.base is not None:  # the export names this location of the base, too
            adaptation = replace(adaptation, base=main.name, base_revision=main.revision)
        save = save_peft if args.format == "peft" else save_merged
        save(adaptation, main, args.output_dir, lossy=args.lossy, overwrite=args.overwrite)
        for phrase in what_is_lost(adaptation, main):
            logger.warning("lost in the export: %s", phrase)
    say(f"exported {args.adaptation} as {args.format}: {args.output_dir}")


def _load(name: str) -> "Adaptation":
    from hart.model.adaptation import Adaptation
    from hart.serving.store import ID, Store

    if re.fullmatch(r"[0-9a-f]{8,63}", name) and not Path(name).exists():
        raise HartError(f"{name}: no such folder; for an adaptation in the store, give its whole id of 64 digits")
    if not ID.fullmatch(name) or Path(name).is_dir():
        return Adaptation.from_pretrained(name)
    store = Store(max_bytes=None)  # without a limit, as reading must delete no adaptation
    kept = store.get(name)
    if kept is None:
        raise HartError(
            f"{name}: no such adaptation in {store.folder}; for another store, give the folder with that name"
        )
    return kept
