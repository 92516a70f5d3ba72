#!/usr/bin/env python3
"""Checks that adapters pass between Commons and the `peft` package without a change.

    python3 scripts/check-peft.py [PATH OF commons]     # default: target/debug/commons

1. Commons trains an adapter on a small model; peft loads it, and must give the loss that Commons
   measures, and the logits of the checkpoint that Commons materializes.
2. peft makes adapters (plain, rank-stabilised, with patterns of rank and scale, with a module saved
   whole); Commons adds each to the model, and the checkpoint it writes must give peft's logits.
3. Commons' export must survive peft's own load and save without a change of any tensor.

Needs torch, transformers and peft (any CPU build). Without them it makes an environment of its own in
target/check-peft; CHECK_PYTHON names an interpreter that has them already.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ["torch", "transformers", "peft"]
MARK = "COMMONS_CHECK_PEFT"
# Float32 through two implementations of the same network.
TOLERANCE = 2e-4


def hand_over():
    """Runs this script again with an interpreter that has the packages."""
    if MARK in os.environ:
        sys.exit(f"{sys.executable} lacks one of: {', '.join(PACKAGES)}")
    python = os.environ.get("CHECK_PYTHON")
    if not python:
        folder = ROOT / "target/check-peft"
        python = folder / "bin/python"
        if not python.exists():
            venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    os.environ[MARK] = "1"
    os.execv(python, [str(python), *sys.argv])


try:
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
except ImportError:
    hand_over()


def commons(*arguments, json_answer=True):
    command = [str(COMMONS), "--offline", *map(str, arguments)]
    if json_answer:
        command.append("--json")
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{ran.stderr}")
    return json.loads(ran.stdout) if json_answer else ran.stdout


def base_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def compare(what, a, b):
    error = ((a - b).abs().max() / b.abs().max()).item()
    verdict = "equal" if error < TOLERANCE else "DIFFERENT"
    print(f"{what}: {verdict}, largest relative difference {error:.1e}")
    return error < TOLERANCE


def ours_in_peft(work, plain, ids):
    """An adapter trained by Commons, used by peft."""
    (work / "text.txt").write_text("".join(f"line {i}: {i * 7 % 31} and {i * i % 17}.\n" for i in range(400)))
    commons("train", "--model", plain, "--data", work / "text.txt", "--steps", 30, "--batch-size", 2,
            "--seq-len", 48, "--lora-rank", 4, "--lora-alpha", 12, "--lr", "1e-2", "-o", work / "tuned")
    commons("materialize", work / "tuned", "-o", work / "merged")
    adapter = work / "tuned/adapter"
    model = PeftModel.from_pretrained(base_model(plain), adapter)
    ours, theirs = logits(base_model(work / "merged"), ids), logits(model, ids)
    good = compare("trained by commons, logits in peft", theirs, ours)
    moved = (theirs - logits(base_model(plain), ids)).abs().max().item()
    print(f"  (the adapter moves logits by up to {moved:.2f})")
    good &= moved > 0.1

    sample = "line 3: 21 and 9.\nline 5: 4 and 8.\n"
    (work / "sample.txt").write_text(sample)
    answer = commons("eval", work / "tuned", "--data", work / "sample.txt", "--context", 64, "--stride", 63)
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    tokens = torch.tensor([tokenizer(sample, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss
    good &= compare("  loss by commons and by peft", torch.tensor(answer["text"]["loss"]), loss)

    model.save_pretrained(work / "again")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, work / "again"))
    same = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    print(f"  {len(before)} tensors after a load and save by peft: {'equal' if same else 'DIFFERENT'}")
    return good and same


def theirs_in_commons(work, plain, ids):
    """Adapters made by peft, used by Commons."""
    linear = ["q_proj", "v_proj", "down_proj"]
    cases = {
        "plain": LoraConfig(r=4, lora_alpha=6, target_modules=linear, task_type="CAUSAL_LM"),
        "all-linear": LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
        "rank-stabilised": LoraConfig(r=4, lora_alpha=6, target_modules=linear, use_rslora=True),
        "patterns": LoraConfig(r=2, lora_alpha=3, target_modules=linear, rank_pattern={"v_proj": 5},
                               alpha_pattern={r"layers\.0\.mlp\.down_proj": 9}),
        "expression": LoraConfig(r=2, target_modules=r".*\.layers\.[01]\..*(k_proj|up_proj)"),
        "module saved whole": LoraConfig(r=2, target_modules=linear, modules_to_save=["norm"]),
    }
    good = True
    for name, config in cases.items():
        torch.manual_seed(len(name))
        model = get_peft_model(base_model(plain), config).eval()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        folder, merged = work / f"peft {name}", work / f"merged {name}"
        model.save_pretrained(folder)
        commons("materialize", plain, "--adapter", folder, "-o", merged)
        good &= compare(f"made by peft, {name}", logits(base_model(merged), ids), logits(model, ids))
        reloaded = PeftModel.from_pretrained(base_model(plain), folder)
        good &= torch.equal(logits(reloaded, ids), logits(model, ids))
    return good


def main():
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        plain = work / "plain"
        commons("materialize", "tiny", "-o", plain)
        torch.manual_seed(0)
        ids = torch.randint(3, base_model(plain).config.vocab_size, (2, 40))
        good = ours_in_peft(work, plain, ids) & theirs_in_commons(work, plain, ids)
    print("all equal" if good else "FAILED")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    COMMONS = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target/debug/commons"
    main()
