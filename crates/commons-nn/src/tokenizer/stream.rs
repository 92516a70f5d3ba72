//! Decoding ids one by one, giving out only text that later ids cannot change.

use super::Tokenizer;
use crate::error::Result;

/// Turns ids that arrive one by one into text.
///
/// Text is held back while it ends in an incomplete character: a character may be spread over
/// several byte-level tokens.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Ids from the start of the current context on; earlier ones no longer matter.
    ids: Vec<u32>,
    /// How many of `ids` are context that has already been given out.
    given: usize,
}

/// An incomplete character decodes to this one.
const REPLACEMENT: char = '\u{fffd}';
/// A UTF-8 character has at most this many bytes, so at most this many pending byte tokens.
const LONGEST_CHARACTER: usize = 4;

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            ids: Vec::new(),
            given: 0,
        }
    }

    /// Adds an id and returns the text that became certain, possibly none.
    ///
    /// # Errors
    /// When the id cannot be decoded.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let fresh = self.fresh()?;
        let pending = self.ids.len() - self.given;
        // After four ids an incomplete character is not going to be completed any more.
        if fresh.is_empty() || (fresh.ends_with(REPLACEMENT) && pending < LONGEST_CHARACTER) {
            return Ok(String::new());
        }
        self.settle();
        Ok(fresh)
    }

    /// Returns what is still held back; an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// When the ids cannot be decoded.
    pub fn finish(&mut self) -> Result<String> {
        let fresh = self.fresh()?;
        self.ids.clear();
        self.given = 0;
        Ok(fresh)
    }

    /// Text of the ids not given out yet, decoded after their context: a decoder may treat the
    /// first token of a text specially.
    fn fresh(&self) -> Result<String> {
        let before = self
            .tokenizer
            .decode(&self.ids[..self.given], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(all.strip_prefix(&before).unwrap_or(&all).to_owned())
    }

    /// Keeps the ids just given out as the context of the next ones.
    fn settle(&mut self) {
        self.ids.drain(..self.given);
        self.given = self.ids.len();
    }
}
