//! Idempotency keys (R11).

use uuid::Uuid;

/// The namespace of the keys, the same in every service. It must never change: keys live in the database for a day.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d69_6c6c_7261_6365_8000_7265_7175_6573);

/// The key under which the store remembers a call: UUIDv5 of (method, request id), for no tenant. None for an empty request id, with which
/// a repeat is another call.
pub(crate) fn request_key(method: &str, request_id: &str) -> Option<Uuid> {
    if request_id.is_empty() {
        return None;
    }
    Some(Uuid::new_v5(&NAMESPACE, format!("\0{method}\0{request_id}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_a_key_names_method_and_request_and_is_the_same_in_every_release() {
        // The queue service's test has the same key, so keys of all services are made alike.
        let key = request_key("CreateQueue", "a").map(|key| key.to_string());
        assert_eq!(key.as_deref(), Some("0624e9d8-ee1d-5e85-8b3f-1007f2ba0675"));
        assert_ne!(request_key("CreatePool", "a"), request_key("UpdatePool", "a"));
        assert_eq!(request_key("CreatePool", ""), None);
    }
}
