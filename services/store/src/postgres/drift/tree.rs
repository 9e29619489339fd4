//! SQL as nested words, as far as statements need to be understood to be fitted to another type.
//!
//! The statements of this store write keywords in upper case and names in lower case; what is in quotes is left alone.

/// A piece of a statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node<'t> {
    /// A name.
    Name(&'t str),
    /// A keyword.
    Word(&'t str),
    Dot,
    Comma,
    Space(&'t str),
    /// A number, a literal, a value's place, an operator, a quoted name.
    Other(&'t str),
    /// What stands between parentheses.
    Group(Vec<Node<'t>>),
}

/// Takes a text apart. Written out again, the pieces are the text; a parenthesis that is never closed is closed at the end.
pub(super) fn parse(text: &str) -> Vec<Node<'_>> {
    let mut rest = text;
    // The groups that are open, the innermost last.
    let mut open: Vec<Vec<Node<'_>>> = vec![Vec::new()];
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' => {
                open.push(Vec::new());
                rest = &rest[1..];
                continue;
            }
            ')' if open.len() > 1 => {
                close(&mut open);
                rest = &rest[1..];
                continue;
            }
            '\'' | '"' => quoted(rest, first),
            _ if is_name(first) => span(rest, |c| is_name(c) || c.is_ascii_digit()),
            _ if first.is_whitespace() => span(rest, char::is_whitespace),
            '$' | '0'..='9' => 1 + span(&rest[1..], |c| c.is_ascii_alphanumeric()),
            _ if is_operator(first) => span(rest, is_operator),
            _ => first.len_utf8(),
        };
        let (piece, after) = rest.split_at(length);
        let node = match first {
            '.' => Node::Dot,
            ',' => Node::Comma,
            'a'..='z' | '_' => Node::Name(piece),
            'A'..='Z' => Node::Word(piece),
            _ if first.is_whitespace() => Node::Space(piece),
            _ => Node::Other(piece),
        };
        push(&mut open, node);
        rest = after;
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap_or_default()
}

fn push<'t>(open: &mut [Vec<Node<'t>>], node: Node<'t>) {
    if let Some(innermost) = open.last_mut() {
        innermost.push(node);
    }
}

fn close(open: &mut Vec<Vec<Node<'_>>>) {
    if let Some(group) = open.pop() {
        push(open, Node::Group(group));
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_operator(c: char) -> bool {
    "+-*/<>=~!@#%^&|?:".contains(c)
}

fn span(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// The length of what is in quotes, where a quote is written twice.
fn quoted(text: &str, quote: char) -> usize {
    let mut at = 1;
    loop {
        match text[at..].find(quote) {
            None => return text.len(),
            Some(found) if text[at + found + 1..].starts_with(quote) => at += found + 2,
            Some(found) => return at + found + 1,
        }
    }
}

/// Writes pieces as they were.
pub(super) fn write(nodes: &[Node<'_>], out: &mut String) {
    for node in nodes {
        match node {
            Node::Name(text) | Node::Word(text) | Node::Space(text) | Node::Other(text) => out.push_str(text),
            Node::Dot => out.push('.'),
            Node::Comma => out.push(','),
            Node::Group(inner) => {
                out.push('(');
                write(inner, out);
                out.push(')');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_the_text() {
        for text in [
            "SELECT t.id, 'it''s (not) a group', \"t\".\"Rank\" FROM tasks t WHERE (t.id, $12) > ($1, 4e2) -- é",
            "a(b(c)d",
            "a)b",
            "",
            "'open",
            "x::text[]",
            "($4::smallint[])[n]",
        ] {
            let mut out = String::new();
            write(&parse(text), &mut out);
            assert!(out == text || out == format!("{text})"), "{out}");
        }
        assert_eq!(
            parse("t.a='x'"),
            [Node::Name("t"), Node::Dot, Node::Name("a"), Node::Other("="), Node::Other("'x'")]
        );
    }
}
