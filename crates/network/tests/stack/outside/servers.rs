//! Programs that listen in a namespace, each in a thread.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;

use super::super::fixture::echo;
use super::Site;

/// A server that ends when it is dropped; what it has open goes on.
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Server {
    /// Tells each client who it is and who the client is, in a line, and sends back what it gets.
    pub fn named(site: &Site, at: &str, address: IpAddr, port: u16) -> Self {
        let name = at.to_owned();
        Self::start(site, at, (address, port).into(), move |mut stream| {
            let peer = stream.peer_addr().unwrap();
            if writeln!(stream, "{name} {peer}").is_ok() {
                echo(stream);
            }
        })
    }

    pub fn start(
        site: &Site,
        at: &str,
        address: SocketAddr,
        handler: impl Fn(TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let listener = site.within(at, || TcpListener::bind(address).unwrap());
        let own = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = own.accept() {
                let handler = handler.clone();
                let thread = std::thread::Builder::new().stack_size(96 * 1024);
                thread.spawn(move || handler(stream)).unwrap();
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

/// Sends datagrams back with its name and their sender in front, until it gets an empty one.
pub struct Mirror(SocketAddr, Option<JoinHandle<()>>);

impl Mirror {
    pub fn start(site: &Site, at: &str, address: IpAddr, port: u16) -> Self {
        let socket = site.within(at, || UdpSocket::bind((address, port)).unwrap());
        let own = socket.try_clone().unwrap();
        let name = at.to_owned();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let Ok((length, from)) = own.recv_from(&mut buffer) else { continue };
                if length == 0 {
                    return;
                }
                let reply = [format!("{name} {from} ").as_bytes(), &buffer[..length]].concat();
                // Who has gone gets nothing.
                let _gone = own.send_to(&reply, from);
            }
        });
        let local = socket.local_addr().unwrap();
        // Sent from the same namespace.
        Self(local, Some(thread))
    }

    pub fn stop(mut self, site: &Site, at: &str) {
        let socket = site.udp(at, self.0.ip(), 0);
        socket.send_to(&[], self.0).unwrap();
        self.1.take().unwrap().join().unwrap();
    }
}

/// The name that a server gave, and the client's address as it saw it.
#[track_caller]
pub fn greeting(stream: &mut TcpStream) -> (String, SocketAddr) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (name, peer) = line.trim().split_once(' ').unwrap();
    (name.to_owned(), peer.parse().unwrap())
}

/// Ends a connection to a server, and waits until netd has.
pub fn end(mut stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
