//! Text to token ids and back: tokenizers read from `tokenizer.json`, GGUF metadata or `vocab.txt`,
//! and a byte-level one that needs no file.

mod builtin;
pub mod chat;
mod gguf;
mod stream;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value as Json;
pub use stream::StreamDecoder;
use tokenizers as hf;

use crate::error::{Error, Result};
use crate::format::atomic;

/// Ids with a meaning to the model; `None` where the vocabulary has no such token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills short rows of a batch.
    pub pad: Option<u32>,
    /// Ids at which generation stops: `eos` and, for chat models, the end of a turn.
    pub stop: Vec<u32>,
}

/// Ids of a pair of texts with the segment (0 or 1) of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each id.
    pub segments: Vec<u32>,
}

/// A tokenizer with its special ids and chat template. Cloning copies the vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: hf::Tokenizer,
    /// Copy that reads the names of special tokens as plain text.
    plain: OnceLock<Box<hf::Tokenizer>>,
    special: SpecialIds,
    chat_template: Option<String>,
}

impl Tokenizer {
    fn assemble(inner: hf::Tokenizer, special: SpecialIds, chat_template: Option<String>) -> Self {
        Self {
            inner,
            plain: OnceLock::new(),
            special,
            chat_template,
        }
    }

    /// Opens a tokenizer from a model: a folder with `tokenizer.json` or `vocab.txt`, one of those
    /// files, or a `.gguf` file.
    ///
    /// # Errors
    /// When there is none or a file is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            let (json, vocab) = (path.join("tokenizer.json"), path.join("vocab.txt"));
            return if json.is_file() {
                Self::from_file(json)
            } else if vocab.is_file() {
                Self::from_word_pieces(&vocab, true)
            } else {
                Err(Error::malformed(
                    path,
                    "holds neither tokenizer.json nor vocab.txt",
                ))
            };
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Self::from_gguf(&crate::format::gguf::Gguf::open(path)?),
            Some("txt") => Self::from_word_pieces(path, true),
            Some("json") => Self::from_file(path),
            _ => Self::open(path.parent().unwrap_or(Path::new("."))),
        }
    }

    /// Reads `tokenizer.json`, and beside it, where present, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// When a file cannot be read or is malformed.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let inner = hf::Tokenizer::from_bytes(&bytes)
            .map_err(|e| Error::malformed(path, format!("is not a tokenizer: {e}")))?;
        let mut tokenizer = Self::assemble(inner, SpecialIds::default(), None);
        tokenizer.read_companions(path)?;
        Ok(tokenizer)
    }

    /// Reads the bytes of a `tokenizer.json`; special ids follow from customary token names.
    ///
    /// # Errors
    /// When the bytes are malformed; `name` appears in the message.
    pub fn from_json_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let inner = hf::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::malformed(name, format!("is not a tokenizer: {e}")))?;
        let mut tokenizer = Self::assemble(inner, SpecialIds::default(), None);
        tokenizer.guess_special();
        Ok(tokenizer)
    }

    fn read_companions(&mut self, tokenizer_json: &Path) -> Result<()> {
        let read = |name: &str| -> Result<Json> {
            let path = tokenizer_json.with_file_name(name);
            if !path.is_file() {
                return Ok(Json::Null);
            }
            Ok(Json::Object(crate::format::folder::read_config(&path)?))
        };
        let map = read("special_tokens_map.json")?;
        let config = read("tokenizer_config.json")?;
        let generation = read("generation_config.json")?;
        let find = |name: &str| {
            let entry = [&config, &map].into_iter().find_map(|j| match &j[name] {
                Json::String(text) => Some(text.as_str()),
                entry => entry["content"].as_str(),
            })?;
            self.inner.token_to_id(entry)
        };
        self.special.bos = find("bos_token").or_else(|| find("cls_token"));
        self.special.eos = find("eos_token").or_else(|| find("sep_token"));
        self.special.pad = find("pad_token");
        self.special.stop = match &generation["eos_token_id"] {
            Json::Array(ids) => ids.iter().filter_map(id_of).collect(),
            single => id_of(single).into_iter().collect(),
        };
        self.chat_template = match &config["chat_template"] {
            Json::String(text) => Some(text.clone()),
            // Several named templates: the one called `default`.
            Json::Array(named) => named
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| Some(t["template"].as_str()?.to_owned())),
            _ => None,
        };
        let template = tokenizer_json.with_file_name("chat_template.jinja");
        if template.is_file() {
            let text =
                std::fs::read_to_string(&template).map_err(|e| Error::io(&template, "read", e))?;
            self.chat_template = Some(text);
        }
        self.guess_special();
        Ok(())
    }

    /// Fills special ids that no file named from token names in general use.
    fn guess_special(&mut self) {
        let first = |names: &[&str]| names.iter().find_map(|n| self.inner.token_to_id(n));
        let (bos, eos, pad) = (
            first(&["<s>", "<bos>", "<|begin_of_text|>", "[CLS]"]),
            first(&["</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"]),
            first(&["<pad>", "[PAD]"]),
        );
        let special = &mut self.special;
        special.bos = special.bos.or(bos);
        special.eos = special.eos.or(eos);
        special.pad = special.pad.or(pad);
        if let Some(eos) = special.eos
            && !special.stop.contains(&eos)
        {
            special.stop.push(eos);
        }
    }

    /// Ids of `text`; `add_special` surrounds them as the model expects (e.g. a leading `bos`).
    /// Names of special tokens inside `text` become those tokens.
    ///
    /// # Errors
    /// When the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(cannot_encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of many texts, in parallel and in order.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], add_special: bool) -> Result<Vec<Vec<u32>>> {
        use rayon::prelude::*;
        texts
            .par_iter()
            .map(|text| self.encode(text, add_special))
            .collect()
    }

    /// Ids of text that comes from users: names of special tokens inside it stay plain text.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_untrusted(&self, text: &str) -> Result<Vec<u32>> {
        // Whether special names are recognised is a property of the whole tokenizer, so a copy of it
        // is kept, made when first needed.
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            Box::new(plain)
        });
        let encoding = plain.encode_fast(text, false).map_err(cannot_encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids and segments of a pair of texts, surrounded as the model expects.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<EncodedPair> {
        let encoding = self
            .inner
            .encode_fast((first, second), true)
            .map_err(cannot_encode)?;
        Ok(EncodedPair {
            ids: encoding.get_ids().to_vec(),
            segments: encoding.get_type_ids().to_vec(),
        })
    }

    /// Ids of `text` with the byte range of `text` each came from.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_with_ranges(&self, text: &str) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(cannot_encode)?;
        let ranges = encoding
            .get_offsets()
            .iter()
            .map(|&(begin, end)| begin..end);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
    }

    /// Text of `ids`; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::invalid("token ids", format!("cannot be decoded: {e}")))
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// Number of ids, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of the token written `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id, as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids with a meaning to the model.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Replaces the special ids.
    pub fn set_special(&mut self, special: SpecialIds) {
        self.special = special;
    }

    /// The Jinja template of conversations, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Replaces the template of conversations.
    pub fn set_chat_template(&mut self, template: Option<String>) {
        self.chat_template = template;
    }

    /// The text of `messages` as the model's chat template writes it.
    ///
    /// # Errors
    /// When the model has no template, or the template fails or refuses the messages.
    pub fn render_chat(
        &self,
        messages: &[chat::Message],
        options: &chat::Options,
    ) -> Result<String> {
        let template = self.chat_template().ok_or_else(|| {
            Error::invalid("chat template", "this model has none")
                .remedy("use an instruction-tuned model, or give plain text")
        })?;
        let name = |id: Option<u32>| id.and_then(|id| self.token(id)).unwrap_or_default();
        let tokens = chat::TokenNames {
            bos: name(self.special.bos),
            eos: name(self.special.eos),
            pad: name(self.special.pad),
        };
        chat::render(template, messages, &tokens, options)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`.
    ///
    /// # Errors
    /// When the vocabulary cannot be serialised or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let json = self.to_json()?;
        atomic::write(&folder.join("tokenizer.json"), json.as_bytes())?;
        let name = |id: Option<u32>| id.and_then(|id| self.token(id));
        let mut config = serde_json::Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        let ids = [
            ("bos_token", self.special.bos),
            ("eos_token", self.special.eos),
            ("pad_token", self.special.pad),
        ];
        for (key, id) in ids {
            if let Some(token) = name(id) {
                config.insert(key.into(), token.into());
            }
        }
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), template.clone().into());
        }
        let text = format!("{:#}\n", Json::Object(config));
        atomic::write(&folder.join("tokenizer_config.json"), text.as_bytes())
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// When the vocabulary cannot be serialised.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(true)
            .map_err(|e| Error::invalid("tokenizer", format!("cannot be written: {e}")))
    }
}

fn id_of(value: &Json) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn cannot_encode(error: hf::Error) -> Error {
    Error::invalid("text", format!("cannot be encoded: {error}"))
}
