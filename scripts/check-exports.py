#!/usr/bin/env python3
"""Checks that what Commons writes out is read alike by transformers and llama.cpp.

    scripts/check-exports.py MODEL...      # names or folders, shared or not

For each model: writes it out plainly as a Hugging Face folder (f32) and as GGUF (both f32), then compares
our logits with those of transformers, and our greedy continuations with those of llama.cpp.
Makes its own virtual environment and npm folder under target/ (set CHECK_PYTHON to an interpreter
that already has torch and transformers). llama.cpp comes from the npm package node-llama-cpp.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at 100 degrees Celsius because",
    "def fibonacci(n):\n    if n < 2:",
    "One morning Ann and Ben met in the park.",
]
TOKENS = 12
GREEDY = """
import { getLlama } from "node-llama-cpp";
const [file, tokens, ...prompts] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 512, threads: 2 });
const sequence = context.getSequence();
const all = [];
for (const prompt of prompts) {
  await sequence.clearHistory();
  const out = [];
  const ids = model.tokenize(prompt, false);
  for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    out.push(token);
    if (out.length >= Number(tokens)) break;
  }
  all.push({ ids, continuation: out });
}
console.log(JSON.stringify(all));
process.exit(0);
"""


def python():
    if chosen := os.environ.get("CHECK_PYTHON"):
        return chosen
    folder = TARGET / "check-venv"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "torch", "transformers"], check=True)
        (folder / "ready").touch()
    return str(folder / "bin/python")


def llama_folder():
    folder = TARGET / "check-llama"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules/node-llama-cpp").exists():
        (folder / "package.json").write_text("{}")
        subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "node-llama-cpp"], cwd=folder, check=True)
    (folder / "greedy.mjs").write_text(GREEDY)
    return folder


def ours(model, prompt):
    out = subprocess.run([TARGET / "release/examples/logits", model, prompt, str(TOKENS)],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def theirs(folder, cases):
    """Largest absolute difference to transformers over all logits; runs in the other interpreter."""
    code = ("import json,sys,torch,transformers as t\n"
            "m=t.AutoModelForCausalLM.from_pretrained(sys.argv[1],dtype=torch.float32).eval()\n"
            "for c in json.load(sys.stdin):\n"
            "    with torch.no_grad(): l=m(torch.tensor([c['ids']])).logits[0]\n"
            "    print((l-torch.tensor(c['logits'])).abs().max().item())\n")
    out = subprocess.run([python(), "-c", code, folder], input=json.dumps(cases), check=True,
                         capture_output=True, text=True).stdout
    return [float(line) for line in out.split()]


def main():
    models = sys.argv[1:]
    if not models:
        sys.exit(__doc__)
    subprocess.run(["cargo", "build", "--release", "-q", "--workspace", "--bins", "--examples"],
                   cwd=ROOT, check=True)
    failed = False
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            folder, gguf = f"{scratch}/hf", f"{scratch}/model.gguf"
            for out in (folder, gguf):
                subprocess.run([TARGET / "release/commons", "materialize", model, "-o", out, "--quiet", "--dtype", "f32"], check=True,
                               stdout=subprocess.DEVNULL)
            cases = [ours(model, prompt) for prompt in PROMPTS]
            difference = max(theirs(folder, cases))
            out = subprocess.run(["node", "greedy.mjs", gguf, str(TOKENS), *PROMPTS], cwd=llama_folder(), check=True,
                                 capture_output=True, text=True).stdout
            greedy = json.loads(out.strip().splitlines()[-1])
            alike = sum(a["continuation"] == b["continuation"] and a["ids"] == b["ids"]
                        for a, b in zip(cases, greedy))
            failed |= difference > 1e-3 or alike < len(PROMPTS)
            print(f"{model}: transformers, largest difference of a logit {difference:.2e} (at most 1e-3); "
                  f"llama.cpp, {alike} of {len(PROMPTS)} greedy continuations of {TOKENS} tokens alike")
    sys.exit(failed)


if __name__ == "__main__":
    main()
