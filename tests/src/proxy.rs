//! A TCP proxy on loopback that can cut its connections and refuse new ones.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// A proxy to one address. Its thread ends with the test process.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    /// Both ends of every connection; closed ones are dropped at the next connection.
    open: Vec<TcpStream>,
}

impl Proxy {
    /// A proxy on a port of its own to `target` ("127.0.0.1:5432").
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding a port of the loopback interface");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let (target, shared) = (target.to_owned(), state.clone());
        thread::spawn(move || {
            for inbound in listener.incoming().flatten() {
                connect(inbound, &target, &shared);
            }
        });
        Self { port, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection, and each new one at once.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.cut = true;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets new connections through again.
    pub fn mend(&self) {
        lock(&self.state).cut = false;
    }
}

fn connect(inbound: TcpStream, target: &str, shared: &Arc<Mutex<State>>) {
    let mut state = lock(shared);
    if state.cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(target) else { return };
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    for (from, to) in [(&inbound, &outbound), (&outbound, &inbound)] {
        if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
            thread::spawn(move || pump(from, to));
        }
    }
    state.open.retain(|stream| stream.peer_addr().is_ok());
    state.open.extend([inbound, outbound]);
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
