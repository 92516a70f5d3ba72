//! Just enough of Rust's lexical grammar to look for names in code without being fooled by
//! comments, strings and tests.

/// `text` with comments and the contents of string and character literals turned into spaces.
/// Line breaks stay, so a line number in the result is a line number in `text`.
pub fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !continues_identifier(bytes, at) => raw_string_end(bytes, at).unwrap_or(at + 1),
            b'\'' => char_end(bytes, at).unwrap_or(at + 1),
            _ => at + 1,
        };
        if end > at + 1 {
            blank(&mut out[at..end]);
        }
        at = end;
    }
    // Whole literals and comments were replaced, so no multi-byte character was cut.
    String::from_utf8_lossy(&out).into_owned()
}

/// `code` (already without literals) with every item under `#[cfg(test)]` turned into spaces.
pub fn blank_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    if code.contains("#![cfg(test)]") {
        return code.chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
    }
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code[from..].find(MARK) {
        let start = from + found;
        let end = item_end(code.as_bytes(), start + MARK.len());
        blank(&mut out[start..end]);
        from = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Lines (from 1) of `code` on which `name` stands by itself: `rand` is not found in `operand`,
/// and `.scatter(` is found whatever follows.
pub fn lines_with(code: &str, name: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    for (index, line) in code.lines().enumerate() {
        if find_name(line, name).is_some() {
            lines.push(index + 1);
        }
    }
    lines
}

/// Byte offset of the first free-standing occurrence of `name` in `text`.
pub fn find_name(text: &str, name: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (starts, ends) = (name.starts_with(is_word), name.ends_with(is_word));
    text.match_indices(name).map(|(at, _)| at).find(|&at| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !(starts && before.is_some_and(is_word) || ends && after.is_some_and(is_word))
    })
}

/// Number (from 1) of the line that holds byte `offset`.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..]
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(bytes.len(), |length| start + length)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// End of the raw string at `start` (`r"…"`, `r#"…"#`), or `None` if none begins there.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|&&byte| byte == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close)?;
    Some(open + 1 + length + close.len())
}

/// End of the character literal at `start`, or `None` for a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        let length = bytes.get(start + 3..)?.iter().position(|&b| b == b'\'')?;
        return Some(start + 3 + length + 1);
    }
    let rest = std::str::from_utf8(bytes.get(start + 1..)?).ok()?;
    let close = start + 1 + rest.chars().next()?.len_utf8();
    (bytes.get(close) == Some(&b'\'')).then_some(close + 1)
}

/// Whether the byte before `at` belongs to an identifier (other than a `b` or `c` prefix).
fn continues_identifier(bytes: &[u8], at: usize) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let Some(&before) = at.checked_sub(1).and_then(|index| bytes.get(index)) else {
        return false;
    };
    let prefix = matches!(before, b'b' | b'c') && !(at >= 2 && is_word(bytes[at - 2]));
    is_word(before) && !prefix
}

/// End of the item that begins at or after `start`: its closing brace, or its semicolon.
fn item_end(code: &[u8], start: usize) -> usize {
    let mut depth = 0usize;
    for (index, &byte) in code.iter().enumerate().skip(start) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && byte == b'}' {
                    return index + 1;
                }
            }
            b';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_vanish_and_lines_stay() {
        let text = "let a = \"x\\\"y\"; // unsafe\n/* un /* nested */ safe */ let b = 'u';\n\
                    let c = r#\"todo!\n\"#; fn f<'a>(x: &'a str) {}\nlet d = b\"dbg!\";";
        let code = blank_literals(text);
        assert_eq!(code.lines().count(), text.lines().count());
        for gone in ["unsafe", "safe", "todo", "dbg", "'u'"] {
            assert!(!code.contains(gone), "{gone} is still in {code:?}");
        }
        for kept in ["let a =", "let b =", "let c =", "fn f<'a>(x: &'a str) {}", "let d ="] {
            assert!(code.contains(kept), "{kept} was lost from {code:?}");
        }
    }

    #[test]
    fn escaped_and_wide_characters_are_literals() {
        let code = blank_literals("['\\'', '\\\\', '\\u{1F600}', 'é', '\"'] unsafe");
        assert_eq!(lines_with(&code, "unsafe"), [1]);
        assert!(!code.contains('é') && !code.contains('"'));
    }

    #[test]
    fn identifiers_ending_in_r_open_no_raw_string() {
        let code = blank_literals("macro_r\"text\"; for x in y {}");
        assert!(code.contains("for x in y {}"));
    }

    #[test]
    fn test_items_vanish() {
        let code = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn b() { let c = [1]; }\n}\n\
                    #[cfg(test)]\nmod more;\nfn d() {}\n";
        let rest = blank_tests(code);
        assert!(rest.contains("fn a()") && rest.contains("fn d()"));
        assert!(!rest.contains("fn b()") && !rest.contains("more"));
        assert_eq!(line_of(&rest, rest.find("fn d").unwrap()), 9);
    }

    #[test]
    fn names_are_matched_whole() {
        assert_eq!(lines_with("operand\nrand::x()\n", "rand::"), [2]);
        assert_eq!(lines_with("Tensor::randn()\nTensor::rand()", "Tensor::rand"), [2]);
        assert_eq!(lines_with("x.scatter(y)\nscatter(y)", ".scatter("), [1]);
    }
}
