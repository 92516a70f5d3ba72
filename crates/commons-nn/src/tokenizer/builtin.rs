//! Tokenizers made without a `tokenizer.json`: WordPiece from `vocab.txt`, and plain bytes.

use std::path::Path;

use tokenizers as hf;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper};

use super::{SpecialIds, Tokenizer};
use crate::error::{Error, Place, Result};

/// Special tokens of a BERT vocabulary.
const BERT_SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Special tokens of the byte-level tokenizer, ids 256 to 258.
const BYTE_SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];

impl Tokenizer {
    /// A WordPiece tokenizer as BERT has it, from a `vocab.txt` with one token a line.
    ///
    /// `tokenizer_config.json` beside it decides about lower-casing; `lower_case` applies without.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8, gives a token twice or lacks a special token.
    pub fn from_word_pieces(vocab: &Path, lower_case: bool) -> Result<Self> {
        let bytes = std::fs::read(vocab).map_err(|e| Error::io(vocab, "read", e))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::malformed(vocab, "is not UTF-8")
                .at(Place::Byte(e.utf8_error().valid_up_to() as u64))
        })?;
        let mut ids = Vocab::default();
        for (line, token) in text.lines().enumerate() {
            if ids
                .insert(token.trim_end().to_owned(), line as u32)
                .is_some()
            {
                return Err(Error::malformed(vocab, format!("gives `{token}` twice"))
                    .at(Place::Line(line as u64 + 1)));
            }
        }
        for name in BERT_SPECIAL {
            if !ids.contains_key(name) {
                return Err(Error::malformed(
                    vocab,
                    format!("lacks the special token `{name}`"),
                ));
            }
        }
        let config = vocab.with_file_name("tokenizer_config.json");
        let lower_case = match config.is_file() {
            true => crate::format::folder::read_config(&config)?
                .get("do_lower_case")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(lower_case),
            false => lower_case,
        };
        let (cls, sep) = (ids["[CLS]"], ids["[SEP]"]);
        let special = SpecialIds {
            bos: Some(cls),
            eos: Some(sep),
            pad: Some(ids["[PAD]"]),
            stop: vec![sep],
        };
        let fault = |e: hf::Error| Error::malformed(vocab, format!("is not a vocabulary: {e}"));
        let model = WordPiece::builder()
            .vocab(ids)
            .unk_token("[UNK]".into())
            .build()
            .map_err(fault)?;
        let mut inner = hf::Tokenizer::new(model);
        let normalizer = BertNormalizer::new(true, true, None, lower_case);
        inner
            .with_normalizer(Some(NormalizerWrapper::from(normalizer)))
            .map_err(fault)?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_post_processor(Some(surround_bert(cls, sep)?));
        inner.with_decoder(Some(WordPieceDecoder::new("##".into(), true)));
        let added = BERT_SPECIAL.map(|name| AddedToken::from(name, true));
        inner.add_special_tokens(added).map_err(fault)?;
        Ok(Self::assemble(inner, special, None))
    }

    /// A tokenizer whose ids are the UTF-8 bytes of the text, 0 to 255, with `<pad>` 256, `<bos>`
    /// 257 and `<eos>` 258. Every text can be encoded, and decoding gives it back exactly.
    ///
    /// # Errors
    /// None in practice; the underlying library's constructors are fallible.
    pub fn bytes() -> Result<Self> {
        let fault = |e: hf::Error| Error::invalid("byte tokenizer", e.to_string());
        let mut vocab: Vocab = byte_names()
            .into_iter()
            .enumerate()
            .map(|(byte, name)| (name.to_string(), byte as u32))
            .collect();
        for (i, name) in BYTE_SPECIAL.iter().enumerate() {
            vocab.insert((*name).into(), 256 + i as u32);
        }
        let model = BPE::builder()
            .vocab_and_merges(vocab, Vec::new())
            .build()
            .map_err(fault)?;
        let mut inner = hf::Tokenizer::new(model);
        // Without the regular expression the whole text is one word; no merges, so order of words
        // does not matter and none needs to be split off.
        let byte_level = ByteLevel::new(false, false, false);
        inner.with_pre_tokenizer(Some(byte_level));
        inner.with_decoder(Some(byte_level));
        let added = BYTE_SPECIAL.map(|name| AddedToken::from(name, true));
        inner.add_special_tokens(added).map_err(fault)?;
        let special = SpecialIds {
            pad: Some(256),
            bos: Some(257),
            eos: Some(258),
            stop: vec![258],
        };
        Ok(Self::assemble(inner, special, None))
    }
}

fn surround_bert(cls: u32, sep: u32) -> Result<PostProcessorWrapper> {
    surround(
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        vec![("[CLS]".to_owned(), cls), ("[SEP]".to_owned(), sep)],
    )
}

/// A post-processor that adds special tokens as the templates for one and two texts say.
pub(super) fn surround(
    single: &str,
    pair: &str,
    tokens: Vec<(String, u32)>,
) -> Result<PostProcessorWrapper> {
    let fault = |e: String| Error::invalid("tokenizer template", e);
    let template = TemplateProcessing::builder()
        .try_single(single)
        .map_err(fault)?
        .try_pair(pair)
        .map_err(fault)?
        .special_tokens(tokens)
        .build()
        .map_err(|e| fault(e.to_string()))?;
    Ok(template.into())
}

/// The printable stand-in of every byte in byte-level vocabularies: printable Latin-1 characters
/// stand for themselves, the other 68 bytes for U+0100 onwards, in order.
pub(super) fn byte_names() -> [char; 256] {
    let mut names = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        names[usize::from(byte)] = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    names
}
