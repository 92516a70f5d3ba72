#!/usr/bin/env python3
"""Writes the reference data that the GGUF and tokenizer tests compare against.

    python3 scripts/golden-formats.py blocks
    python3 scripts/golden-formats.py tokenizers SMOLLM2.gguf GEMMA3.gguf

Needs: numpy, gguf (whose dequantize is the reference for blocks), llama-cpp-python and transformers
(both must agree on token ids). Files go to crates/commons-nn/tests/data/.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/commons-nn/tests/data"
TEXTS = [
    'Hello, world!',
    '  two  spaces   and\ttabs\n\nnew lines \n',
    'In 2024, pi is 3.14159 and 1,000,000 > 42',
    'na\xefve caf\xe9 \u2014 \u201cquotes\u201d \u2026 \xdcn\xefc\xf6d\xe9 \xdf',
    '\U0001f999\U0001f680\U0001f469\u200d\U0001f469\u200d\U0001f467 flags \U0001f1e9\U0001f1ea',
    'fn main() { let x: u32 = 0xFF; println!("{x}"); }',
    '\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u3068 \u4e2d\u6587\u5b57\u7b26',
    "it's we're I'LL they'd DON'T",
    '<|im_start|>user\nhi<|im_end|>\n',
    'a',
    '',
    ' leading',
    'trailing ',
    'x=1;y=2;;//c',
    '\x00\x07 control',
    'URL: https://example.org/a?b=c&d=%20',
]

# Where a block holds half-precision scales; random bytes there would be NaN.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def blocks():
    from gguf import GGMLQuantizationType as Type
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize, quantize

    rng = np.random.default_rng(7)
    out = {}
    for name, scales in SCALES.items():
        length, size = GGML_QUANT_SIZES[Type[name]]
        count = 2 if length == 256 else 3
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for at in scales:
            half = rng.normal(0, 0.05, count).astype(np.float16)
            raw[:, at : at + 2] = half.view(np.uint8).reshape(count, 2)
        values = dequantize(raw.reshape(1, -1), Type[name]).astype("<f4")
        out[name] = {"bytes": raw.tobytes().hex(), "values": values.tobytes().hex()}
    plain = np.concatenate(
        [rng.normal(0, 1, 64), np.zeros(32), [127.0] * 16 + [0.5] * 8 + [-63.5] * 8]
    ).astype("<f4")
    encoded = quantize(plain.reshape(1, -1), Type.Q8_0)
    out["quantize_Q8_0"] = {"values": plain.tobytes().hex(), "bytes": encoded.tobytes().hex()}
    (OUT / "ggml-blocks.json").write_text(json.dumps(out, indent=0) + "\n")


def llama_ids(path):
    from llama_cpp import Llama

    model = Llama(model_path=str(path), vocab_only=True, verbose=False)
    return [model.tokenize(t.encode(), add_bos=False, special=True) for t in TEXTS]


def both_ids(path):
    from transformers import AutoTokenizer

    path = pathlib.Path(path)
    ids = llama_ids(path)
    reference = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    for text, mine in zip(TEXTS, ids):
        assert reference.encode(text, add_special_tokens=False) == mine, text
    return ids


def start(path, source, arch):
    """A GGUF without tensors that llama.cpp opens for its vocabulary."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(str(path), arch)
    sizes = {
        "context_length": 64, "embedding_length": 8, "block_count": 18,
        "feed_forward_length": 8, "attention.head_count": 2, "attention.head_count_kv": 1,
        "attention.sliding_window": 8, "attention.key_length": 4, "attention.value_length": 4,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    return writer, lambda key: reader.fields[f"tokenizer.{key}"].contents()


def finish(writer, read, tokens, kinds):
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [int(k) for k in kinds])
    for name in ["bos", "eos", "unknown", "padding"]:
        key = f"{name}_token_id"
        writer.add_uint32(f"tokenizer.ggml.{key}", read(f"ggml.{key}"))
    for key in ["add_bos_token", "add_space_prefix"]:
        writer.add_bool(f"tokenizer.ggml.{key}", read(f"ggml.{key}"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut_bpe(source, path, keep=2500):
    """The special tokens, the bytes and the first merges."""
    writer, read = start(path, source, "llama")
    merges = read("ggml.merges")[:keep]
    pieces = {piece for m in merges for piece in [*m.split(" "), m.replace(" ", "")]}
    pairs = zip(read("ggml.tokens"), read("ggml.token_type"))
    kept = [(t, k) for i, (t, k) in enumerate(pairs) if i < 17 or len(t) == 1 or t in pieces]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.merges", merges)
    writer.add_string("tokenizer.chat_template", read("chat_template"))
    finish(writer, read, [t for t, _ in kept], [k for _, k in kept])


def cut_pieces(source, path):
    """Control tokens, runs of space and newline, bytes, single letters and the first words."""
    writer, read = start(path, source, "gemma3")
    table = zip(read("ggml.tokens"), read("ggml.scores"), read("ggml.token_type"))
    kept = [
        (t, s, k)
        for i, (t, s, k) in enumerate(table)
        if i < 6 or k == 6 or t == "\u2581" or (len(t) == 1 and ord(t) < 0x250)
        or (k == 4 and 105 <= i < 170) or (k == 1 and i < 3000)
    ]
    # Every character of a kept piece must be a piece itself, as it is in whole vocabularies.
    letters = {c for t, _, _ in kept for c in t}
    names = {t for t, _, _ in kept}
    rest = zip(read("ggml.tokens"), read("ggml.scores"), read("ggml.token_type"))
    kept += [row for row in rest if row[0] in letters and row[0] not in names]
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.scores", [float(s) for _, s, _ in kept])
    finish(writer, read, [t for t, _, _ in kept], [k for _, _, k in kept])


def tokenizers(smollm, gemma):
    folder = OUT / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        paths = [pathlib.Path(temporary) / n for n in ["smollm-cut.gguf", "gemma-cut.gguf"]]
        cut_bpe(smollm, paths[0])
        cut_pieces(gemma, paths[1])
        golden = {
            "texts": TEXTS,
            "smollm-cut": llama_ids(paths[0]),
            "gemma-cut": llama_ids(paths[1]),
            "smollm2-135m": both_ids(smollm),
            "gemma3-270m": both_ids(gemma),
        }
        for path in paths:
            shutil.copy(path, folder)
    lines = ",\n".join(
        f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(v) for v in values) + "\n]"
        for key, values in golden.items()
    )
    (folder / "golden.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    {"blocks": blocks, "tokenizers": tokenizers}[sys.argv[1]](*sys.argv[2:])
