//! Symbol patterns, as Python's `fnmatch` reads them (case-sensitive): `*`, `?`, `[abc]`, `[!a-z]`.
//!
//! `fnmatch` turns a pattern into a regular expression, and some classes mean what that happens to mean; this follows
//! `fnmatch.translate` step by step, so that every pattern means the same here.

#[derive(Debug, PartialEq)]
enum Piece {
    /// Any text.
    Any,
    /// Any one character.
    One,
    Literal(char),
    /// One character in, or not in, one of the ranges; both ends belong to them.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

#[derive(Debug)]
pub struct Glob {
    pieces: Vec<Piece>,
}

impl Glob {
    pub fn new(pattern: &str) -> Self {
        let chars: Vec<char> = pattern.chars().collect();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let char = chars[at];
            at += 1;
            let piece = match char {
                '*' if pieces.last() == Some(&Piece::Any) => continue,
                '*' => Piece::Any,
                '?' => Piece::One,
                '[' => match end_of_class(&chars, at) {
                    Some(end) => {
                        let class = class_of(&chars[at..end]);
                        at = end + 1;
                        class
                    }
                    None => Piece::Literal('['),
                },
                literal => Piece::Literal(literal),
            };
            pieces.push(piece);
        }
        Self { pieces }
    }

    /// Whether the whole text is what the pattern says.
    pub fn matches(&self, text: &str) -> bool {
        let chars: Vec<char> = text.chars().collect();
        let (mut at, mut piece) = (0, 0);
        let mut last_any: Option<(usize, usize)> = None; // the piece behind the last `*`, and where its text goes on
        while at < chars.len() {
            match self.pieces.get(piece) {
                Some(Piece::Any) => {
                    piece += 1;
                    last_any = Some((piece, at));
                    continue;
                }
                Some(found) if found.takes(chars[at]) => {
                    at += 1;
                    piece += 1;
                    continue;
                }
                _ => {}
            }
            let Some((behind, from)) = last_any else {
                return false;
            };
            (piece, at) = (behind, from + 1);
            last_any = Some((behind, from + 1));
        }
        self.pieces[piece..].iter().all(|piece| *piece == Piece::Any)
    }
}

impl Piece {
    fn takes(&self, char: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Literal(literal) => *literal == char,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&char)) != *negated
            }
        }
    }
}

/// Where the class that begins at `begin` ends: the place of its `]`, which may also be its first member.
fn end_of_class(chars: &[char], begin: usize) -> Option<usize> {
    let mut at = begin;
    at += usize::from(chars.get(at) == Some(&'!'));
    at += usize::from(chars.get(at) == Some(&']'));
    (at..chars.len()).find(|place| chars[*place] == ']')
}

fn class_of(chars: &[char]) -> Piece {
    let mut chunks = chunks_of(chars);
    // Ranges that go down are empty; what is left of the chunks beside them grows together.
    for place in (1..chunks.len()).rev() {
        if chunks[place - 1].last() > chunks[place].first() {
            let behind = chunks.remove(place);
            chunks[place - 1].pop();
            chunks[place - 1].extend_from_slice(&behind[1..]);
        }
    }
    let negated = chunks[0].first() == Some(&'!');
    if negated {
        chunks[0].remove(0);
    }
    let mut ranges: Vec<(char, char)> = chunks.iter().flatten().map(|char| (*char, *char)).collect();
    for pair in chunks.windows(2) {
        match (pair[0].last(), pair[1].first()) {
            (Some(first), Some(last)) => ranges.push((*first, *last)),
            _ => ranges.push(('-', '-')), // a hyphen behind nothing is a hyphen
        }
    }
    Piece::Class { negated, ranges }
}

/// A class cut at the hyphens that stand for a range.
fn chunks_of(chars: &[char]) -> Vec<Vec<char>> {
    let mut chunks = Vec::new();
    let mut begin = 0;
    let mut from = if chars.first() == Some(&'!') { 2 } else { 1 };
    while let Some(hyphen) = (from..chars.len()).find(|place| chars[*place] == '-') {
        chunks.push(chars[begin..hyphen].to_vec());
        begin = hyphen + 1;
        from = hyphen + 3;
    }
    match (&chars[begin..], chunks.last_mut()) {
        ([], Some(last)) => last.push('-'),
        (rest, _) => chunks.push(rest.to_vec()),
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("A*", "AAPL", true),
            ("A*", "BA", false),
            ("*", "", true),
            ("", "", true),
            ("?", "", false),
            ("?", "\n", true),
            ("*US?", "BRENT.USD", true),
            ("a*b*c", "axxbxxbc", true),
            ("[ab]x", "bx", true),
            ("[!ab]x", "bx", false),
            ("[a-cx]", "b", true),
            ("[]a]", "]", true),
            ("[", "[", true),
            ("[b-a]", "b", false),
            ("[!b-a]", "b", true),
            ("a", "A", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_read(pattern in "[-!\\[\\]a-c*?^\\\\]{0,12}", text in "[-!\\[\\]a-c^\\\\]{0,6}") {
            Glob::new(&pattern).matches(&text);
        }
    }
}
