//! Pages of lists.

use millrace_core::id::{NodeId, is_name};
use millrace_runtime::status::Violations;

/// Start every token, so that a token of another list, or of another release's form, is refused rather than misread.
const POOLS: &str = "p1-";
const NODES: &str = "n1-";

/// How many to return: 1 to 1000, 0 means 100.
pub(super) fn size(asked: i32, violations: &mut Violations) -> usize {
    violations.require((0..=1_000).contains(&asked), "page_size", "must be from 0 to 1000");
    match usize::try_from(asked) {
        Ok(0) | Err(_) => 100,
        Ok(size) => size,
    }
}

/// The token of the page after this pool. Opaque to callers: hexadecimal, so that nobody is tempted to make one.
pub(super) fn after_pool(last: &str) -> String {
    let hex: String = last.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{POOLS}{hex}")
}

/// The pool after which the page begins; none for the first page.
pub(super) fn read_pool(token: &str, violations: &mut Violations) -> Option<String> {
    let name = |hex: &str| String::from_utf8(from_hex(hex)?).ok().filter(|name| is_name(name));
    read(token, POOLS, name, violations)
}

/// The token of the page below this node.
pub(super) fn below_node(last: NodeId) -> String {
    format!("{NODES}{}", last.0.simple())
}

/// The node below which the page begins; none for the first page.
pub(super) fn read_node(token: &str, violations: &mut Violations) -> Option<NodeId> {
    read(token, NODES, |hex| NodeId::from_bytes(&from_hex(hex)?).ok(), violations)
}

fn read<T>(token: &str, form: &str, of: impl Fn(&str) -> Option<T>, violations: &mut Violations) -> Option<T> {
    if token.is_empty() {
        return None;
    }
    let read = token.strip_prefix(form).and_then(of);
    violations.require(read.is_some(), "page_token", "must be the next_page_token of an earlier answer");
    read
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn tokens_are_read_back_and_others_refused() {
        let mut violations = Violations::new();
        let node = NodeId(Uuid::from_u128(77));
        assert_eq!(read_pool(&after_pool("gpu.large-1"), &mut violations).as_deref(), Some("gpu.large-1"));
        assert_eq!(read_node(&below_node(node), &mut violations), Some(node));
        assert_eq!((read_pool("", &mut violations), read_node("", &mut violations)), (None, None));
        assert!(violations.finish().is_ok());
        for bad in ["gpu", "p1-", "p1-4", "p1-zz", "p1-41", "p2-61", "p1-é", &below_node(node)] {
            let mut violations = Violations::new();
            assert_eq!(read_pool(bad, &mut violations), None, "{bad}");
            assert!(violations.finish().is_err(), "{bad}");
        }
        let mut violations = Violations::new();
        assert_eq!(read_node("n1-00", &mut violations), None);
        assert!(violations.finish().is_err());
    }
}
