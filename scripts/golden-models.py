#!/usr/bin/env python3
"""Writes the reference outputs that the model tests compare against.

    python3 scripts/golden-models.py families   # tiny random models of every family + logits
    python3 scripts/golden-models.py smollm2 PATH.gguf
    python3 scripts/golden-models.py minilm FOLDER

Needs: torch, transformers, gguf, safetensors (any CPU build). Files go to
crates/commons-nn/tests/data/.
"""
import json
import pathlib
import sys

import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/commons-nn/tests/data"
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:",
    "Once upon a time, in a small village by the sea,",
    "Water boils at 100 degrees Celsius because",
    "Q: What is 17 + 25?\nA:",
]
SENTENCES = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog.",
    "Commons share what nobody owns.",
    "Zürich is a city in Switzerland, isn't it?",
    "def f(x): return x ** 2",
]


def families():
    from transformers import (BertConfig, BertModel, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig,
                              LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                              Qwen3ForCausalLM, ViTConfig, ViTForImageClassification)
    small = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    llama3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=16, rope_theta=10000.0)
    models = {
        "llama": (LlamaForCausalLM, LlamaConfig(**small, tie_word_embeddings=True)),
        "llama3-rope": (LlamaForCausalLM, LlamaConfig(**small, rope_parameters=llama3)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**small)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**small, head_dim=8)),
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**small, head_dim=8, sliding_window=4,
                                                      query_pre_attn_scalar=12,
                                                      layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    }
    ids = torch.tensor([[3, 17, 42, 5, 60, 9, 11, 23, 8, 2]])
    for name, (cls, config) in models.items():
        torch.manual_seed(7)
        model = cls(config).float().eval()
        scramble(model)
        folder = OUT / name
        model.save_pretrained(folder)
        with torch.no_grad():
            logits = model(ids).logits[0]
        write(folder / "golden.json", {"ids": ids[0].tolist(), "logits": rounded(logits)})
    bert = BertModel(BertConfig(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                                num_attention_heads=4, max_position_embeddings=32)).eval()
    scramble(bert)
    bert.save_pretrained(OUT / "bert")
    rows = torch.tensor([[3, 17, 42, 5, 60, 9], [4, 8, 15, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        hidden = bert(rows, attention_mask=mask).last_hidden_state
    write(OUT / "bert/golden.json", {"ids": rows.tolist(), "lengths": [6, 3],
                                     "hidden": [rounded(hidden[0]), rounded(hidden[1][:3])]})
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=3, hidden_size=24,
                                              intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                                              num_labels=5, layer_norm_eps=1e-6, hidden_act="gelu")).eval()
    scramble(vit)
    vit.save_pretrained(OUT / "vit")
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = vit(image).logits
    write(OUT / "vit/golden.json", {"images": rounded(image.flatten()), "logits": rounded(logits)})


def scramble(model):
    """Random gains and biases: at their initial values they would hide errors."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * 0.25)


def smollm2(path):
    path = pathlib.Path(path)
    load = dict(gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **load)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **load).eval()
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0]
        rows.append({
            "prompt": prompt, "ids": ids[0].tolist(),
            # Every 173rd logit of the last three positions, and what normalises them.
            "stride": 173, "logits": rounded(logits[-3:, ::173], 5),
            "logsumexp": rounded(torch.logsumexp(logits[-3:].double(), -1), 6),
            "argmax": logits.argmax(-1).tolist(),
        })
    write(OUT / "smollm2-135m.golden.json", rows)


def minilm(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    mean = torch.nn.functional.normalize(mean, dim=-1)
    ids = [row[: int(m.sum())].tolist() for row, m in zip(batch["input_ids"], batch["attention_mask"])]
    write(OUT / "minilm-l6.golden.json", [
        {"text": t, "ids": i, "embedding": rounded(e, 6)} for t, i, e in zip(SENTENCES, ids, mean)])


def rounded(tensor, digits=6):
    if tensor.dim() == 0:
        return round(float(tensor), digits)
    return [rounded(row, digits) for row in tensor]


def write(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    what, *args = sys.argv[1:] or ["families"]
    OUT.mkdir(parents=True, exist_ok=True)
    {"families": families, "smollm2": smollm2, "minilm": minilm}[what](*args)
