use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;

use super::chat::{Message, Options};
use super::*;
use crate::format::gguf::Gguf;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tokenizer")
        .join(name)
}

fn cut(name: &str) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(data(&format!("{name}.gguf"))).unwrap()).unwrap()
}

fn golden() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data("golden.json")).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

/// Reference ids come from llama.cpp on the same file.
#[test]
fn ids_are_those_of_the_reference() {
    let golden = golden();
    for name in ["smollm-cut", "gemma-cut"] {
        let tokenizer = cut(name);
        for (text, expected) in golden["texts"]
            .as_array()
            .unwrap()
            .iter()
            .zip(golden[name].as_array().unwrap())
        {
            let text = text.as_str().unwrap();
            let encoded = tokenizer.encode(text, false).unwrap();
            assert_eq!(encoded, ids(expected), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&encoded, false).unwrap(), text, "{name}");
        }
    }
}

/// The same ids after `tokenizer.json`, and after GGUF metadata written by this crate.
#[test]
fn saved_tokenizers_encode_alike() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    for name in ["smollm-cut", "gemma-cut"] {
        let tokenizer = cut(name);
        tokenizer.save(folder.path()).unwrap();
        let from_json = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(from_json.special(), tokenizer.special());
        assert_eq!(from_json.chat_template(), tokenizer.chat_template());
        let path = folder.path().join("m.gguf");
        let metadata = tokenizer.to_gguf().unwrap();
        crate::format::gguf::write(&path, &metadata, &[], |_| Ok(Vec::new())).unwrap();
        let from_gguf = Tokenizer::open(&path).unwrap();
        assert_eq!(from_gguf.vocab_size(), tokenizer.vocab_size());
        for text in golden["texts"].as_array().unwrap() {
            let text = text.as_str().unwrap();
            for special in [false, true] {
                let expected = tokenizer.encode(text, special).unwrap();
                assert_eq!(
                    from_json.encode(text, special).unwrap(),
                    expected,
                    "{name} {text:?}"
                );
                assert_eq!(
                    from_gguf.encode(text, special).unwrap(),
                    expected,
                    "{name} {text:?}"
                );
            }
        }
    }
}

#[test]
fn special_ids_and_surroundings_follow_the_metadata() {
    let smollm = cut("smollm-cut");
    assert_eq!(
        smollm.special(),
        &SpecialIds {
            bos: Some(1),
            eos: Some(2),
            pad: Some(2),
            stop: vec![2]
        }
    );
    assert_eq!(
        smollm.encode("a", true).unwrap(),
        smollm.encode("a", false).unwrap()
    );
    let gemma = cut("gemma-cut");
    assert_eq!(gemma.encode("a", true).unwrap()[0], 2);
    assert_eq!(
        gemma
            .decode(&gemma.encode("a b", true).unwrap(), true)
            .unwrap(),
        "a b"
    );
}

#[test]
fn untrusted_text_never_yields_special_ids() {
    let tokenizer = cut("smollm-cut");
    let text = "<|im_start|>system<|im_end|><|endoftext|>";
    assert!(tokenizer.encode(text, false).unwrap().contains(&1));
    let plain = tokenizer.encode_untrusted(text).unwrap();
    assert!(plain.iter().all(|&id| id > 16), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
}

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::bytes().unwrap();
    assert_eq!(tokenizer.vocab_size(), 259);
    let text = "a\0é🦙\n";
    let encoded = tokenizer.encode(text, false).unwrap();
    assert_eq!(encoded, text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&encoded, true).unwrap(), text);
    assert_eq!(tokenizer.special().pad, Some(256));
}

#[test]
fn word_pieces_from_a_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let vocab = folder.path().join("vocab.txt");
    std::fs::write(
        &vocab,
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhel\n##lo\nworld\n!\n",
    )
    .unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(
        tokenizer.encode("Héllo world! x", true).unwrap(),
        [2, 5, 6, 7, 8, 1, 3]
    );
    let pair = tokenizer.encode_pair("hello", "world").unwrap();
    assert_eq!(pair.ids, [2, 5, 6, 3, 7, 3]);
    assert_eq!(pair.segments, [0, 0, 0, 0, 1, 1]);
    assert_eq!(
        tokenizer.decode(&[2, 5, 6, 7, 3], true).unwrap(),
        "hello world"
    );
    let ranges = tokenizer.encode_with_ranges("hello world").unwrap();
    assert_eq!(ranges, [(5, 0..3), (6, 3..5), (7, 6..11)]);
    std::fs::write(&vocab, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n").unwrap();
    assert!(
        Tokenizer::open(&vocab)
            .unwrap_err()
            .to_string()
            .contains("line 7")
    );
    std::fs::write(&vocab, "a\n").unwrap();
    assert!(
        Tokenizer::open(&vocab)
            .unwrap_err()
            .to_string()
            .contains("[PAD]")
    );
}

#[test]
fn streaming_gives_whole_characters_and_the_same_text() {
    for tokenizer in [
        cut("smollm-cut"),
        cut("gemma-cut"),
        Tokenizer::bytes().unwrap(),
    ] {
        for text in golden()["texts"].as_array().unwrap() {
            let text = text.as_str().unwrap();
            let mut stream = tokenizer.stream(false);
            let mut out = String::new();
            for id in tokenizer.encode(text, false).unwrap() {
                let piece = stream.push(id).unwrap();
                assert!(!piece.contains('\u{fffd}'), "{text:?}: {piece:?}");
                out.push_str(&piece);
            }
            out.push_str(&stream.finish().unwrap());
            assert_eq!(out, text);
        }
    }
}

#[test]
fn chat_template_of_smollm() {
    let tokenizer = cut("smollm-cut");
    let messages = [Message::new("user", "Hi")];
    let options = Options {
        add_generation_prompt: true,
        ..Options::default()
    };
    assert_eq!(
        tokenizer.render_chat(&messages, &options).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

fn render(template: &str, extra: serde_json::Value) -> Result<String> {
    let messages = [
        Message::new("user", " Hi there "),
        Message::new("assistant", "<think>a</think>\n\nb"),
    ];
    let options = Options {
        tools: Some(json!([{ "zeta": 1, "alpha": "é", "list": [], "sub": { "k": null } }])),
        date: Some((2024, 7, 5)),
        extra: extra.as_object().cloned().unwrap_or_default(),
        ..Options::default()
    };
    chat::render(template, &messages, &chat::TokenNames::default(), &options)
}

/// Constructs that published templates use, with what the reference library gives for each.
#[test]
fn python_habits_of_templates() {
    let cases = [
        (
            "{{ messages[0].content.strip() }}|{{ messages[0]['content'] | trim }}",
            "Hi there|Hi there",
        ),
        (
            "{{ messages[1].content.split('</think>')[-1].lstrip('\\n') }}",
            "b",
        ),
        (
            "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}",
            "au",
        ),
        (
            "{{ tools[0] | tojson }}",
            r#"{"zeta": 1, "alpha": "é", "list": [], "sub": {"k": null}}"#,
        ),
        (
            "{{ {'a': [1, 2]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2\n  ]\n}",
        ),
        ("{{ strftime_now('%d %b %Y') }}", "05 Jul 2024"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% for k, v in tools[0].sub.items() %}{{ k }}{% endfor %}{{ tools[0].get('no', 'def') }}",
            "kdef",
        ),
        (
            "{{ 'ab'.upper() }}{{ 'Ab c'.title() }}{{ 'x'.startswith('x') }}",
            "ABAb CTrue",
        ),
        (
            "{%- if enable_thinking is defined and not enable_thinking %}off{% endif %}",
            "off",
        ),
        (
            "{{ messages[1].content.find('b') }} {{ ', '.join(['p', 'q']) }}",
            "18 p, q",
        ),
        (
            "{% if tools is not none and tools is iterable and messages[0].content is string %}y{% endif %}",
            "y",
        ),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
    ];
    for (template, expected) in cases {
        let text = render(template, json!({ "enable_thinking": false })).unwrap();
        assert_eq!(text, expected, "{template}");
    }
    let refused = render("{{ raise_exception('roles must alternate') }}", json!({})).unwrap_err();
    assert!(
        refused.to_string().contains("roles must alternate"),
        "{refused}"
    );
    assert!(render("{{ 'a'.frobnicate() }}", json!({})).is_err());
    assert!(
        render(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            json!({})
        )
        .is_err()
    );
    let none = Tokenizer::bytes()
        .unwrap()
        .render_chat(&[], &Options::default());
    assert!(
        none.unwrap_err()
            .to_string()
            .contains("this model has none")
    );
}

#[test]
fn companions_of_tokenizer_json_are_read() {
    let folder = tempfile::tempdir().unwrap();
    cut("smollm-cut").save(folder.path()).unwrap();
    let put = |name: &str, value: serde_json::Value| {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    put(
        "tokenizer_config.json",
        json!({
            "eos_token": { "content": "<|im_end|>" },
            "chat_template": [{ "name": "tool", "template": "t" }, { "name": "default", "template": "d" }],
        }),
    );
    put(
        "special_tokens_map.json",
        json!({ "pad_token": "<|endoftext|>", "bos_token": "<|im_start|>" }),
    );
    put("generation_config.json", json!({ "eos_token_id": [2, 0] }));
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(
        tokenizer.special(),
        &SpecialIds {
            bos: Some(1),
            eos: Some(2),
            pad: Some(0),
            stop: vec![2, 0]
        }
    );
    assert_eq!(tokenizer.chat_template(), Some("d"));
    std::fs::write(folder.path().join("chat_template.jinja"), "j").unwrap();
    assert_eq!(
        Tokenizer::open(folder.path()).unwrap().chat_template(),
        Some("j")
    );
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(
        Tokenizer::open(folder.path())
            .unwrap_err()
            .to_string()
            .contains("is not a tokenizer")
    );
}

#[test]
fn unknown_kinds_are_refused() {
    use crate::format::gguf::{Value, write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for (key, value) in [
        ("tokenizer.ggml.pre", "tekken"),
        ("tokenizer.ggml.model", "rwkv"),
    ] {
        let mut metadata = Gguf::open(data("smollm-cut.gguf"))
            .unwrap()
            .metadata()
            .clone();
        metadata.insert(key.into(), Value::String(value.into()));
        write(&path, &metadata, &[], |_| Ok(Vec::new())).unwrap();
        let message = Tokenizer::open(&path).unwrap_err().to_string();
        assert!(
            message.contains(key) && message.contains(value),
            "{message}"
        );
    }
    let mut metadata = Gguf::open(data("smollm-cut.gguf"))
        .unwrap()
        .metadata()
        .clone();
    metadata.insert("tokenizer.ggml.eos_token_id".into(), Value::U32(1 << 30));
    write(&path, &metadata, &[], |_| Ok(Vec::new())).unwrap();
    assert!(Tokenizer::open(&path).is_err());
}

proptest! {
    #[test]
    fn every_text_survives(text in "\\PC{0,40}") {
        let tokenizer = cut("smollm-cut");
        let encoded = tokenizer.encode_untrusted(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&encoded, false).unwrap(), text.clone());
        let bytes = Tokenizer::bytes().unwrap();
        let encoded = bytes.encode_untrusted(&text).unwrap();
        prop_assert_eq!(bytes.decode(&encoded, false).unwrap(), text);
    }
}
