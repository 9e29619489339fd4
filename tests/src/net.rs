//! Ports.

use std::net::{Ipv4Addr, TcpListener};

/// A port of the loopback interface that nobody listened on a moment ago. Another process may take it before the caller
/// does, so a caller that can bind port 0 itself does that instead.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binding a port of the loopback interface");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Whether /healthz at this address answers 200.
pub fn is_healthy(address: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(address) = address.parse() else { return false };
    let timeout = std::time::Duration::from_secs(2);
    let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, timeout) else { return false };
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.set_read_timeout(Some(timeout)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// Waits until something listens on a port of the loopback interface.
///
/// # Panics
/// When nothing does for long.
pub fn wait_listening(port: u16) {
    let late = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(std::time::Instant::now() < late, "nobody listens on port {port}");
        pause();
    }
}

/// A moment between two looks at something outside this process, which cannot be waited for otherwise.
pub fn pause() {
    std::thread::park_timeout(std::time::Duration::from_millis(20));
}
