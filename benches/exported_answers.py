"""Compare the answers of adapters from `hart export`, in a process without hart, with those of the generating model.

    python benches/exported_answers.py MODEL --output-dir DIR [--data procedural] [--queries 20] [--vllm PYTHON]

For each unseen task of the collection, the adaptation's own answers (greedy, one query at a time) and its PEFT adapter
are written; then a second process with only transformers and peft loads the base and each adapter, and answers the same
queries. With --vllm (the interpreter of an environment with vLLM), vLLM's engine answers them, too, all queries of a
task in one batch. The output is the number of tasks, queries and equal answers, and the exact match of each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

OTHER = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(sys.argv[1])
content = json.loads((folder / "queries.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(content["base"])
base = AutoModelForCausalLM.from_pretrained(content["base"], dtype=torch.float32).eval()
model = None
answers = {}
for name, queries in content["tasks"].items():
    path = folder / "adapters" / name
    if model is None:
        model = PeftModel.from_pretrained(base, path, adapter_name=name).eval()
    else:
        model.load_adapter(path, adapter_name=name)
    model.set_adapter(name)
    answers[name] = []
    for query in queries:
        ids = tokenizer(query + content["end"], return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=content["max_new_tokens"], do_sample=False)
        answers[name].append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
assert not [name for name in sys.modules if name.split(".")[0] == "hart"]
(folder / "answers.json").write_text(json.dumps(answers))
"""

VLLM = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    content = json.loads((folder / "queries.json").read_text())
    tasks = content["tasks"].items()
    # Half of the memory: of a CPU other processes have a part.
    share = {"gpu_memory_utilization": 0.5, "dtype": "float32", "enforce_eager": True}
    engine = LLM(model=content["base"], enable_lora=True, max_lora_rank=8, **share)
    sampling = SamplingParams(temperature=0, max_tokens=content["max_new_tokens"])
    answers = {}
    for number, (name, queries) in enumerate(tasks, start=1):
        lora = LoRARequest(name, number, str(folder / "adapters" / name))
        made = engine.generate([query + content["end"] for query in queries], sampling, lora_request=lora)
        answers[name] = [each.outputs[0].text for each in made]
    (folder / "answers_vllm.json").write_text(json.dumps(answers))
"""


def write(model_name: str, collection: str, queries: int, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Write adapters and queries into `folder`; returns each task's own answers and the correct ones."""
    from hart import HartModel
    from hart.data.collections import load_tasks
    from hart.data.config import DataConfig
    from hart.model.bundled import resolve_base
    from hart.model.export import save_peft

    model = HartModel.from_pretrained(model_name)
    form, tokenizer = model.input_format, model.main.tokenizer
    tasks = load_tasks(DataConfig(collection=collection, max_test_instances=queries), "test")
    own, asked = {}, {}
    for task in tasks:
        adaptation = model.adapt(task)
        texts = [instance.input for instance in task.instances]
        answers = [model.generate([text], adaptation, max_new_tokens=form.max_target_length)[0] for text in texts]
        own[task.name] = (answers, [instance.references[0] for instance in task.instances])
        asked[task.name] = texts
        save_peft(adaptation, model.main, folder / "adapters" / task.name)
    content = {
        "base": resolve_base(model.main.name),
        "end": tokenizer.eos_token if form.input_eos else "",
        "max_new_tokens": form.max_target_length,
        "tasks": asked,
    }
    (folder / "queries.json").write_text(json.dumps(content), encoding="utf-8")
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--data", default="procedural")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--vllm", metavar="PYTHON")
    arguments = parser.parse_args()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True)
    own = write(arguments.model, arguments.data, arguments.queries, folder)
    subprocess.run([sys.executable, "-c", OTHER, str(folder)], check=True)
    said = {"peft": "answers.json"}
    if arguments.vllm:
        script = folder / "ask_vllm.py"  # a file, from which the engine starts its worker
        script.write_text(VLLM, encoding="utf-8")
        subprocess.run([arguments.vllm, script, folder], check=True)
        said["vllm"] = "answers_vllm.json"
    right = [right for _, rights in own.values() for right in rights]
    answers = {"hart": [answer for answers, _ in own.values() for answer in answers]}
    for name, file in said.items():
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        answers[name] = [answer for task in own for answer in content[task]]
    print(f"{len(own)} tasks, {len(right)} queries")
    for name, theirs in answers.items():
        # Engines differ in the space before the first word.
        pairs = [(a.strip(), b.strip()) for a, b in zip(theirs, answers["hart"], strict=True)]
        match = sum(a.strip() == b for a, b in zip(theirs, right, strict=True)) / len(right)
        print(f"{name}: {sum(a == b for a, b in pairs)} answers as hart's, exact match {match:.3f}")


if __name__ == "__main__":
    main()
