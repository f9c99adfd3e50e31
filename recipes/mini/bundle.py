"""Convert a trained run into a bundled model: weights in bf16 (half the size), with the given model card.

python recipes/mini/bundle.py --model runs/mini/hart_mini/final --card CARD.md --output-dir src/hart/model/bundled/mini
"""

import argparse
from pathlib import Path

import torch

from hart import HartModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a run's final/")
    parser.add_argument("--card", type=Path, required=True, help="text of README.md")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    model = HartModel.from_pretrained(arguments.model)
    model.hypernetwork.to(torch.bfloat16)
    model.save_pretrained(arguments.output_dir, card=arguments.card.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
