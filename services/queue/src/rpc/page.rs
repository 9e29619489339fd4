//! Pages of lists.

use millrace_core::id::is_name;
use millrace_runtime::status::Violations;

/// Starts every token, so that a token of another list, or of another release's form, is refused rather than misread.
const FORM: &str = "q1-";

/// How many to return: 1 to 1000, 0 means 100.
pub(super) fn size(asked: i32, violations: &mut Violations) -> usize {
    violations.require((0..=1_000).contains(&asked), "page_size", "must be from 0 to 1000");
    match usize::try_from(asked) {
        Ok(0) | Err(_) => 100,
        Ok(size) => size,
    }
}

/// The token of the page after this queue. Opaque to callers: hexadecimal, so that nobody is tempted to make one.
pub(super) fn token(last: &str) -> String {
    let hex: String = last.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{FORM}{hex}")
}

/// The queue after which the page begins; none for the first page.
pub(super) fn after(token: &str, violations: &mut Violations) -> Option<String> {
    if token.is_empty() {
        return None;
    }
    let name = token.strip_prefix(FORM).and_then(from_hex).filter(|name| is_name(name));
    violations.require(name.is_some(), "page_token", "must be the next_page_token of an earlier answer");
    name
}

fn from_hex(hex: &str) -> Option<String> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
    String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_others_refused() {
        let mut violations = Violations::new();
        assert_eq!(after(&token("gpu.large-1"), &mut violations).as_deref(), Some("gpu.large-1"));
        assert_eq!(after("", &mut violations), None);
        assert!(violations.finish().is_ok());
        for bad in ["gpu", "q1-", "q1-4", "q1-zz", "q1-41", "q2-61", "q1-+1", "q1-é"] {
            let mut violations = Violations::new();
            assert_eq!(after(bad, &mut violations), None, "{bad}");
            assert!(violations.finish().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_bounds() {
        for (asked, size_given, accepted) in [(0, 100, true), (1, 1, true), (1_000, 1_000, true), (-1, 100, false)] {
            let mut violations = Violations::new();
            assert_eq!(size(asked, &mut violations), size_given);
            assert_eq!(violations.finish().is_ok(), accepted, "{asked}");
        }
        let mut violations = Violations::new();
        size(1_001, &mut violations);
        assert!(violations.finish().is_err());
    }
}
