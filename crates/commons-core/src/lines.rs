//! Line numbers of places in a text.

/// Counts lines up to places that are asked for in rising order.
///
/// Readers of tables count a line end of two characters only when they meet the second, with the
/// next record; this counts from the text itself.
#[derive(Debug)]
pub struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    /// Counts the lines of `text`, the first being 1.
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// The line of the first character at or after `byte` that ends no line.
    pub fn at(&mut self, byte: u64) -> u64 {
        let mut end = usize::try_from(byte).unwrap_or(usize::MAX).clamp(self.at, self.text.len());
        while self.text.get(end).is_some_and(|b| matches!(b, b'\r' | b'\n')) {
            end += 1;
        }
        self.line += self.text[self.at..end].iter().filter(|b| **b == b'\n').count() as u64;
        self.at = end;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_line_ends_and_empty_lines_count() {
        let mut lines = Lines::new(b"a\r\nb\n\n\"x\r\ny\"\r\nz");
        // Where a reader stands after each record: behind `\r`, or behind `\n`.
        let found: Vec<u64> = [0, 2, 5, 14, 99].map(|byte| lines.at(byte)).to_vec();
        assert_eq!(found, [1, 2, 4, 6, 6]);
    }
}
