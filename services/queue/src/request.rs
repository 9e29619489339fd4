//! Idempotency keys (R11).

use uuid::Uuid;

/// The namespace of the keys. It must never change: keys live in the database for a day.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d69_6c6c_7261_6365_8000_7265_7175_6573);

/// The key under which the store remembers a call: UUIDv5 of (tenant, method, request id). None for an empty request id, with which
/// a repeat is another call. Calls that belong to no tenant use the empty one.
///
/// Tenants and methods hold no NUL, so two different triples never make the same key.
pub fn request_key(tenant: &str, method: &str, request_id: &str) -> Option<Uuid> {
    if request_id.is_empty() {
        return None;
    }
    let name = format!("{tenant}\0{method}\0{request_id}");
    Some(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_a_key_names_tenant_method_and_request() {
        let key = request_key("acme", "SubmitTask", "1");
        assert_eq!(key, request_key("acme", "SubmitTask", "1"));
        for other in [("acme", "SubmitTask", "2"), ("acme", "RetryTask", "1"), ("", "SubmitTask", "1")] {
            assert_ne!(key, request_key(other.0, other.1, other.2), "{other:?}");
        }
        assert_eq!(request_key("acme", "SubmitTask", ""), None);
    }

    #[test]
    fn r11_a_key_is_the_same_in_every_release() {
        let key = request_key("", "CreateQueue", "a").map(|key| key.to_string());
        assert_eq!(key.as_deref(), Some("0624e9d8-ee1d-5e85-8b3f-1007f2ba0675"));
    }
}
