#!/usr/bin/env bash
# From a machine with one GPU and an empty disk to a trained model on the hub. Run it in a clone of this project.
#
#   recipes/one_gpu/train_and_publish.sh CONFIG [NAME/MODEL]
#   recipes/one_gpu/train_and_publish.sh configs/t5-small/hart_causal_sni.yaml my-name/hart-t5-small
#
#   GPU     the card, for the estimate (rtx-3090, a100-40gb, ...; hart estimate --help); unset: no estimate
#   DATA    a clone of allenai/natural-instructions (made, two GB, where it is missing)
#   EXTRA   more words for hart train and hart estimate, e.g. for a T4
#           "--training.bf16 false --training.micro_batch_size 1"
#   TEST    more words for hart evaluate, e.g. "--max-instances 10"
#   PYTHON  an environment that has hart; unset: .venv, made here with the newest PyTorch for CUDA
#
# Each step is skipped or goes on where it was when the same command is given again. Without NAME/MODEL nothing is
# uploaded; with it, log in first (hf auth login) and read the card that it shows.
set -euo pipefail
config=$1 name=${2:-}
data=${DATA:-natural-instructions}
read -ra extra <<<"${EXTRA:-}"
read -ra test <<<"${TEST:-}"

if [ -z "${PYTHON:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q -e '.[bnb,export,figures,serve]'
  PYTHON=.venv/bin/python
fi
hart() { "$PYTHON" -m hart "$@"; }

[ -d "$data" ] || git clone --depth 1 https://github.com/allenai/natural-instructions "$data"

# 1. Does it fit, and how long does it take? Stops here if it does not fit.
if [ -n "${GPU:-}" ]; then hart estimate "$config" --gpu "$GPU" "${extra[@]}"; fi

# 2. Train. Checkpoints are in runs/; an interrupted run goes on from the newest.
hart train "$config" --data.dir "$data" "${extra[@]}"
run=runs/$(basename "$(dirname "$config")")/$(basename "$config" .yaml)

# 3. The test tasks, once, and whether the task was read at all: another task's adaptation must score worse.
[ -f "$run/results.json" ] ||
  hart evaluate "$run/final" --data sni --data-dir "$data" --diagnostics --output "$run/results.json" "${test[@]}"

# 4. The model and its card.
if [ -z "$name" ]; then
  echo "trained: $run/final; evaluated: $run/results.json. Give NAME/MODEL as second word to upload it."
else
  "$PYTHON" - "$run/final" "$name" <<'PYTHON'
import sys
from pathlib import Path

from hart import HartModel

folder, name = sys.argv[1:]
card = Path(folder) / "README.md"
print(HartModel.from_pretrained(folder).push_to_hub(name, card=card.read_text(encoding="utf-8")))
PYTHON
fi
