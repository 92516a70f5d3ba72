//! Tokenizers from GGUF metadata, and metadata from tokenizers.
//!
//! GGUF has two families: `gpt2` (byte-level BPE with an explicit list of merges; how text is cut
//! into words is told by name in `tokenizer.ggml.pre`) and `llama` (SentencePiece: merges follow
//! from the scores of the pieces).

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;
use tokenizers as hf;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as NormalizerSequence, unicode::NFC};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::builtin::surround;
use super::{SpecialIds, Tokenizer};
use crate::error::{Error, Result};
use crate::format::gguf::{Array, Gguf, Value};

/// SentencePiece writes a space like this.
const SPACE: &str = "▁";

/// `tokenizer.ggml.token_type` of ordinary tokens.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Words of Llama 3; Qwen 2 differs in taking digits one by one.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How byte-level BPE cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// GPT-2's regular expression.
    Gpt2,
    /// Every digit alone, then GPT-2's.
    Digits,
    Llama3,
    Qwen2,
}

impl Words {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "default" | "gpt-2" | "gpt2" | "mpt" | "olmo" | "jais" | "phi-2" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
                Self::Digits
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "dbrx" | "smaug-bpe" => Self::Llama3,
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" => Self::Qwen2,
            _ => return None,
        })
    }

    /// The name to write in GGUF.
    fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Digits => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
        }
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, hf::Error> {
        let split = |pattern: &str| -> Result<PreTokenizerWrapper, hf::Error> {
            let pattern = SplitPattern::Regex(pattern.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            let bytes = ByteLevel::new(false, true, false);
            Ok(PreSequence::new(vec![split.into(), bytes.into()]).into())
        };
        let gpt2 = ByteLevel::new(false, true, true);
        Ok(match self {
            Self::Gpt2 => gpt2.into(),
            Self::Digits => PreSequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Llama3 => split(LLAMA3_WORDS)?,
            Self::Qwen2 => split(QWEN2_WORDS)?,
        })
    }
}

/// The metadata of a vocabulary, read and checked.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: &'a [String],
    kinds: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf.value(key)?.as_strings();
        let tokens = tokens.ok_or_else(|| gguf.bad_value(key, "is not a list of texts"))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match gguf.metadata().get(key) {
            None => vec![NORMAL; tokens.len()],
            Some(value) => value
                .as_i64s()
                .filter(|kinds| kinds.len() == tokens.len())
                .ok_or_else(|| gguf.bad_value(key, "is not one whole number per token"))?,
        };
        Ok(Self {
            gguf,
            tokens,
            kinds,
        })
    }

    fn ids(&self) -> Vocab {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), id as u32))
            .collect()
    }

    fn id(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(value) = self.gguf.metadata().get(&key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(id) if id < self.tokens.len() as u64 => Ok(Some(id as u32)),
            _ => Err(self
                .gguf
                .bad_value(&key, format!("is {value:?}, not the id of a token"))),
        }
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        let value = self.gguf.metadata().get(&format!("tokenizer.ggml.{name}"));
        value.and_then(Value::as_bool).unwrap_or(default)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.gguf.metadata().get(key).and_then(Value::as_str)
    }

    fn fault(&self, error: impl std::fmt::Display) -> Error {
        Error::malformed(
            self.gguf.file(),
            format!("holds an unusable tokenizer: {error}"),
        )
    }
}

impl Tokenizer {
    /// Builds the tokenizer stored in a GGUF file.
    ///
    /// # Errors
    /// When the metadata are missing or malformed, or name a kind of tokenizer that is not known:
    /// guessing would silently change token ids.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let vocabulary = Vocabulary::read(gguf)?;
        let model = "tokenizer.ggml.model";
        let (mut inner, add_bos) = match gguf.value(model)?.as_str() {
            Some("gpt2") => byte_level_bpe(&vocabulary)?,
            Some("llama") => (sentence_pieces(&vocabulary)?, true),
            other => {
                return Err(gguf
                    .bad_value(model, format!("{other:?} is not supported"))
                    .remedy("supported: gpt2, llama; or put tokenizer.json beside the file"));
            }
        };
        add_tokens(&vocabulary, &mut inner)?;
        let mut special = SpecialIds {
            bos: vocabulary.id("bos")?,
            eos: vocabulary.id("eos")?,
            pad: vocabulary.id("padding")?,
            stop: Vec::new(),
        };
        for id in [special.eos, vocabulary.id("eot")?].into_iter().flatten() {
            if !special.stop.contains(&id) {
                special.stop.push(id);
            }
        }
        if special.pad.is_none() {
            special.pad = special.eos;
        }
        let before = special
            .bos
            .filter(|_| vocabulary.flag("add_bos_token", add_bos));
        let after = special
            .eos
            .filter(|_| vocabulary.flag("add_eos_token", false));
        if before.is_some() || after.is_some() {
            surround_with(&vocabulary, &mut inner, before, after)?;
        }
        let template = vocabulary
            .text("tokenizer.chat_template")
            .map(str::to_owned);
        Ok(Self::assemble(inner, special, template))
    }
}

/// Returns the tokenizer and whether the kind begins texts with `bos` unless told otherwise.
fn byte_level_bpe(vocabulary: &Vocabulary<'_>) -> Result<(hf::Tokenizer, bool)> {
    let gguf = vocabulary.gguf;
    let key = "tokenizer.ggml.merges";
    let merges = gguf.value(key)?.as_strings();
    let merges = merges.ok_or_else(|| gguf.bad_value(key, "is not a list of texts"))?;
    let merges: Merges = merges
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| gguf.bad_value(key, "holds an entry that is not two pieces"))?;
    let key = "tokenizer.ggml.pre";
    let pre = vocabulary.text(key).unwrap_or("default");
    let words = Words::parse(pre).ok_or_else(|| {
        gguf.bad_value(
            key,
            format!("`{pre}` is not a known way to cut text into words"),
        )
        .remedy("put the model's tokenizer.json beside the file and use that")
    })?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges)
        .ignore_merges(words == Words::Llama3)
        .build()
        .map_err(|e| vocabulary.fault(e))?;
    let mut inner = hf::Tokenizer::new(model);
    if words == Words::Qwen2 {
        inner
            .with_normalizer(Some(NFC))
            .map_err(|e| vocabulary.fault(e))?;
    }
    inner.with_pre_tokenizer(Some(
        words.pre_tokenizer().map_err(|e| vocabulary.fault(e))?,
    ));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok((inner, words == Words::Llama3))
}

fn sentence_pieces(vocabulary: &Vocabulary<'_>) -> Result<hf::Tokenizer> {
    let gguf = vocabulary.gguf;
    let key = "tokenizer.ggml.scores";
    let scores = gguf
        .value(key)?
        .as_f32s()
        .filter(|scores| scores.len() == vocabulary.tokens.len())
        .ok_or_else(|| gguf.bad_value(key, "is not one number per token"))?;
    let mut model = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges_from_scores(vocabulary, scores))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = vocabulary.id("unknown")? {
        model = model.unk_token(vocabulary.tokens[unknown as usize].clone());
    }
    let fault = |e: hf::Error| vocabulary.fault(e);
    let mut inner = hf::Tokenizer::new(model.build().map_err(fault)?);
    let prefix = vocabulary.flag("add_space_prefix", true);
    let mut normalizers = Vec::new();
    if prefix {
        normalizers.push(NormalizerWrapper::from(Prepend::new(SPACE.into())));
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(fault)?.into());
    inner
        .with_normalizer(Some(NormalizerSequence::new(normalizers)))
        .map_err(fault)?;
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ").map_err(fault)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(inner)
}

/// SentencePiece always merges the neighbours whose union has the best score. As a list: every way
/// to split a piece into two pieces, best union first, ties by the ids of the parts.
fn merges_from_scores(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Merges {
    let tokens = vocabulary.tokens;
    let mergeable = |id: usize| matches!(vocabulary.kinds[id], NORMAL | USER_DEFINED | UNUSED);
    let ids: HashMap<&str, u32> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| mergeable(*id))
        .map(|(id, token)| (token.as_str(), id as u32))
        .collect();
    let mut found: Vec<(u32, u32, u32)> = Vec::new();
    for (union, token) in tokens.iter().enumerate().filter(|(id, _)| mergeable(*id)) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                found.push((union as u32, left, right));
            }
        }
    }
    let score = |id: u32| scores[id as usize];
    found.sort_by(|a, b| {
        score(b.0)
            .total_cmp(&score(a.0))
            .then(a.0.cmp(&b.0))
            .then((a.1, a.2).cmp(&(b.1, b.2)))
    });
    let text = |id: u32| tokens[id as usize].clone();
    found
        .into_iter()
        .map(|(_, left, right)| (text(left), text(right)))
        .collect()
}

/// Control tokens become special ones; user-defined tokens are found in text before all else.
fn add_tokens(vocabulary: &Vocabulary<'_>, inner: &mut hf::Tokenizer) -> Result<()> {
    let of_kind = |kind: i64, special: bool| {
        let pairs = vocabulary.tokens.iter().zip(&vocabulary.kinds);
        pairs
            .filter(move |(_, k)| **k == kind)
            .map(move |(token, _)| AddedToken::from(token.as_str(), special).normalized(false))
    };
    let added: Vec<AddedToken> = of_kind(CONTROL, true)
        .chain(of_kind(UNKNOWN, true))
        .chain(of_kind(USER_DEFINED, false))
        .collect();
    inner.add_tokens(added).map_err(|e| vocabulary.fault(e))?;
    Ok(())
}

fn surround_with(
    vocabulary: &Vocabulary<'_>,
    inner: &mut hf::Tokenizer,
    before: Option<u32>,
    after: Option<u32>,
) -> Result<()> {
    let (mut single, mut pair) = ("$A:0".to_owned(), "$A:0 $B:1".to_owned());
    let mut tokens = Vec::new();
    // Placeholder names: token names may hold characters that templates give a meaning.
    if let Some(id) = before {
        single = format!("BOS:0 {single}");
        pair = "BOS:0 $A:0 BOS:1 $B:1".to_owned();
        tokens.push(("BOS".to_owned(), id));
    }
    if let Some(id) = after {
        single = format!("{single} EOS:0");
        pair = pair
            .replace("$A:0", "$A:0 EOS:0")
            .replace("$B:1", "$B:1 EOS:1");
        tokens.push(("EOS".to_owned(), id));
    }
    inner.with_post_processor(Some(
        surround(&single, &pair, tokens).map_err(|e| vocabulary.fault(e))?,
    ));
    Ok(())
}

impl Tokenizer {
    /// The `tokenizer.*` metadata of a GGUF file. Ids without a token become unused ones; so do, in
    /// [`crate::format::gguf::export`], embedding rows beyond the vocabulary.
    ///
    /// # Errors
    /// When the tokenizer is neither byte-level BPE with a known way to cut words nor
    /// SentencePiece-like BPE.
    pub fn to_gguf(&self) -> Result<BTreeMap<String, Value>> {
        let unsupported = |what: &str| {
            Error::invalid("tokenizer", format!("{what} cannot be stored in GGUF"))
                .remedy("write a Hugging Face folder instead")
        };
        let json: Json = serde_json::to_value(&self.inner)
            .map_err(|e| Error::invalid("tokenizer", format!("cannot be written: {e}")))?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(unsupported("its model"));
        }
        let size = self
            .inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        let merges: Vec<(String, String)> = serde_json::from_value(model["merges"].clone())
            .map_err(|e| Error::invalid("tokenizer", format!("has unusual merges: {e}")))?;
        let mut out = BTreeMap::new();
        let mut put = |key: &str, value: Value| {
            out.insert(format!("tokenizer.{key}"), value);
        };
        let (tokens, kinds) = self.listing(size, model["byte_fallback"] == true);
        if model["byte_fallback"] == true {
            let prefix = json["normalizer"].to_string().contains("\"Prepend\"");
            put("ggml.model", Value::String("llama".into()));
            put(
                "ggml.scores",
                Value::Array(Array::F32(scores_from_merges(&tokens, &merges))),
            );
            put("ggml.add_space_prefix", Value::Bool(prefix));
        } else {
            let words = words_of(&json).ok_or_else(|| unsupported("its way to cut words"))?;
            put("ggml.model", Value::String("gpt2".into()));
            put("ggml.pre", Value::String(words.name().into()));
            let merges = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            put("ggml.merges", Value::Array(Array::String(merges)));
            put("ggml.add_space_prefix", Value::Bool(false));
        }
        put("ggml.tokens", Value::Array(Array::String(tokens)));
        put("ggml.token_type", Value::Array(Array::I32(kinds)));
        let ids = [
            ("ggml.bos_token_id", self.special.bos),
            ("ggml.eos_token_id", self.special.eos),
            ("ggml.padding_token_id", self.special.pad),
            (
                "ggml.unknown_token_id",
                model["unk_token"].as_str().and_then(|t| self.id(t)),
            ),
            (
                "ggml.eot_token_id",
                self.special
                    .stop
                    .iter()
                    .copied()
                    .find(|id| Some(*id) != self.special.eos),
            ),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                put(key, Value::U32(id));
            }
        }
        let surrounded = self.encode("", true)?;
        let adds = |id: Option<u32>| Value::Bool(id.is_some_and(|id| surrounded.contains(&id)));
        put("ggml.add_bos_token", adds(self.special.bos));
        put(
            "ggml.add_eos_token",
            adds(self.special.eos.filter(|id| Some(*id) != self.special.bos)),
        );
        if let Some(template) = &self.chat_template {
            put("chat_template", Value::String(template.clone()));
        }
        Ok(out)
    }

    /// Every token in order of ids with its kind.
    fn listing(&self, size: usize, byte_fallback: bool) -> (Vec<String>, Vec<i32>) {
        let added = self.inner.get_added_tokens_decoder();
        (0..size as u32)
            .map(|id| {
                let Some(token) = self.token(id) else {
                    return (format!("[PAD{id}]"), UNUSED as i32);
                };
                let kind = match added.get(&id) {
                    Some(token) if token.special => CONTROL,
                    Some(_) => USER_DEFINED,
                    None if byte_fallback && is_byte_token(&token) => BYTE,
                    None => NORMAL,
                };
                (token, kind as i32)
            })
            .unzip()
    }
}

fn is_byte_token(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Scores that make SentencePiece merge in the order of the list: minus the rank of a piece's first
/// merge.
fn scores_from_merges(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    tokens
        .iter()
        .map(|token| first.get(token).map_or(0.0, |&rank| -(rank as f32) - 1.0))
        .collect()
}

/// Recognises the pre-tokenizers that [`Words`] makes, by their serialised form.
fn words_of(json: &Json) -> Option<Words> {
    let pre = &json["pre_tokenizer"];
    if pre["type"] == "ByteLevel" {
        return Some(Words::Gpt2);
    }
    let parts = pre["pretokenizers"].as_array()?;
    let [first, second] = parts.as_slice() else {
        return None;
    };
    if second["type"] != "ByteLevel" {
        return None;
    }
    match (first["type"].as_str()?, first["pattern"]["Regex"].as_str()) {
        ("Digits", _) if first["individual_digits"] == true => Some(Words::Digits),
        ("Split", Some(LLAMA3_WORDS)) => Some(Words::Llama3),
        ("Split", Some(QWEN2_WORDS)) => Some(Words::Qwen2),
        _ => None,
    }
}
