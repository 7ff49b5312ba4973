//! A server and the load for it, for `scripts/bench net` and `scripts/soak`: one static program that runs in any tree.
//!
//! `load serve ADDRESS...`                        answers on TCP and UDP until it is killed
//! `load ftp ADDRESS`                             offers a file by FTP, until it is killed
//! `load send|fetch ADDRESS SECONDS CONNECTIONS`  prints Gbit/s
//! `load request ADDRESS SECONDS CONNECTIONS`     prints requests a second, and microseconds: median, 99th percentile
//! `load connect ADDRESS SECONDS CONNECTIONS`     the same with a new connection for each request
//! `load wait ADDRESS`                            returns as soon as something answers there
//!
//! A request is a line and so is its answer, the server's host name. After `close` the server closes the
//! connection; after `sink` it counts bytes until their end and answers with their number; after `source` it sends
//! as much as is taken. The file by FTP has the host name, too.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is sent or read at once where it is about throughput.
const BLOCK: usize = 128 * 1024;
/// How long `wait` waits, and whoever has a connection for the other end.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", ref addresses @ ..] if !addresses.is_empty() => Server::new(addresses)?.serve(),
        ["ftp", address] => ftp(address.parse()?),
        ["wait", address] => wait(address.parse()?),
        [what, address, seconds, connections] => {
            let address = address.parse()?;
            let time = Duration::from_secs_f64(seconds.parse()?);
            let connections = connections.parse()?;
            match what {
                "send" => throughput(address, time, connections, send),
                "fetch" => throughput(address, time, connections, fetch),
                "request" => latency(address, time, connections, requests),
                "connect" => latency(address, time, connections, connections_one_by_one),
                _ => Err(format!("no load `{what}`").into()),
            }
        }
        _ => Err("load serve ADDRESS... | load ftp ADDRESS | load WHAT ADDRESS SECONDS CONNECTIONS".into()),
    }
}

/// What the server waits for.
enum Source {
    Listener(TcpListener),
    Datagrams(UdpSocket),
    Connection(TcpStream),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(one) => one.as_fd(),
            Self::Datagrams(one) => one.as_fd(),
            Self::Connection(one) => one.as_fd(),
        }
    }
}

/// Short messages are answered by one thread, so that the number of connections costs nothing; each stream of bytes
/// gets a thread.
struct Server {
    poll: OwnedFd,
    sources: HashMap<u64, Source>,
    last: u64,
    /// The answer to every request.
    answer: Vec<u8>,
}

impl Server {
    fn new(addresses: &[&str]) -> Outcome<Self> {
        let answer = std::fs::read("/proc/sys/kernel/hostname")?;
        let mut server =
            Self { poll: epoll::create(CreateFlags::CLOEXEC)?, sources: HashMap::new(), last: 0, answer };
        for address in addresses {
            let listener = TcpListener::bind(address)?;
            // More than the library's 128.
            rustix::net::listen(&listener, 4096)?;
            listener.set_nonblocking(true)?;
            let datagrams = UdpSocket::bind(listener.local_addr()?)?;
            datagrams.set_nonblocking(true)?;
            server.watch(Source::Listener(listener))?;
            server.watch(Source::Datagrams(datagrams))?;
        }
        Ok(server)
    }

    fn watch(&mut self, source: Source) -> Outcome {
        self.last += 1;
        epoll::add(&self.poll, &source, EventData::new_u64(self.last), EventFlags::IN)?;
        self.sources.insert(self.last, source);
        Ok(())
    }

    fn serve(&mut self) -> Outcome {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.ready(event.data.u64())?;
            }
        }
    }

    fn ready(&mut self, id: u64) -> Outcome {
        let mut buffer = [0; 2048];
        match self.sources.get_mut(&id) {
            Some(Source::Listener(listener)) => {
                let accepted = std::iter::from_fn(|| listener.accept().ok()).take(64);
                for (connection, _) in accepted.collect::<Vec<_>>() {
                    connection.set_nonblocking(true)?;
                    connection.set_nodelay(true)?;
                    self.watch(Source::Connection(connection))?;
                }
            }
            Some(Source::Datagrams(socket)) => {
                while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                    // Whoever asked may be gone: then the answer is of no use.
                    let _unreachable = socket.send_to(&buffer[..count], from);
                }
            }
            Some(Source::Connection(connection)) => {
                let keep = match connection.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(count) => match &buffer[..count] {
                        b"sink\n" | b"source\n" => {
                            let (stream, sink) = (connection.try_clone()?, &buffer[..count] == b"sink\n");
                            // Its client sees how it went.
                            thread::spawn(move || if sink { drain(stream) } else { flood(stream) });
                            false
                        }
                        request => {
                            let lines = request.iter().filter(|byte| **byte == b'\n').count();
                            let answers = self.answer.repeat(lines);
                            connection.write_all(&answers).is_ok() && request != b"close\n"
                        }
                    },
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                };
                if !keep {
                    // The thread of a stream has the same open file, which would stay watched.
                    epoll::delete(&self.poll, connection)?;
                    self.sources.remove(&id);
                }
            }
            None => {}
        }
        Ok(())
    }
}

fn drain(mut stream: TcpStream) -> Outcome {
    stream.set_nonblocking(false)?;
    let mut block = vec![0; BLOCK];
    let mut sum = 0;
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(writeln!(stream, "{sum}")?),
            count => sum += count,
        }
    }
}

fn flood(mut stream: TcpStream) -> Outcome {
    stream.set_nonblocking(false)?;
    let block = vec![0; BLOCK];
    loop {
        stream.write_all(&block)?;
    }
}

/// Enough of FTP for `RETR` (RFC 959), in extended passive and active mode (RFC 2428).
fn ftp(address: SocketAddr) -> Outcome {
    let listener = TcpListener::bind(address)?;
    loop {
        let (control, _) = listener.accept()?;
        // Its client sees how it went.
        thread::spawn(move || session(&control));
    }
}

fn session(mut control: &TcpStream) -> Outcome {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let mut data: Option<Box<dyn Fn() -> std::io::Result<TcpStream>>> = None;
    control.write_all(format!("220 {name}").replace('\n', "\r\n").as_bytes())?;
    for line in BufReader::new(control).lines() {
        let line = line?;
        let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let reply = match verb {
            "USER" => "331 Any password".to_owned(),
            "PASS" => "230 Welcome".to_owned(),
            "EPSV" => {
                let listener = TcpListener::bind((control.local_addr()?.ip(), 0))?;
                set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
                let port = listener.local_addr()?.port();
                data = Some(Box::new(move || listener.accept().map(|(stream, _)| stream)));
                format!("229 Entering Extended Passive Mode (|||{port}|)")
            }
            "EPRT" => {
                let mut fields = argument.split('|').skip(2);
                let (host, port) = fields.next().zip(fields.next()).ok_or("no address")?;
                let address = SocketAddr::new(host.parse()?, port.parse()?);
                data = Some(Box::new(move || connect(address)));
                "200 Understood".to_owned()
            }
            "RETR" => {
                control.write_all(b"150 Here it comes\r\n")?;
                data.take().ok_or("no data connection")?()?.write_all(name.as_bytes())?;
                "226 That was it".to_owned()
            }
            "QUIT" => return Ok(control.write_all(b"221 Bye\r\n")?),
            _ => "502 Not here".to_owned(),
        };
        control.write_all(format!("{reply}\r\n").as_bytes())?;
    }
    Ok(())
}

/// Runs a load on several connections; what each gave.
fn on_each<T: Send>(
    connections: usize,
    time: Duration,
    load: impl Fn(Instant) -> Outcome<T> + Sync,
) -> Outcome<Vec<T>> {
    let until = Instant::now() + time;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(|| load(until))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_panic| "a load panicked")?).collect()
    })
}

/// Bytes that arrived on one connection.
type Transfer = fn(SocketAddr, Instant) -> Outcome<u64>;

fn throughput(address: SocketAddr, time: Duration, connections: usize, load: Transfer) -> Outcome {
    let begun = Instant::now();
    let bytes: u64 = on_each(connections, time, |until| load(address, until))?.into_iter().sum();
    println!("{:.3}", bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9);
    Ok(())
}

fn send(address: SocketAddr, until: Instant) -> Outcome<u64> {
    let mut stream = connect(address)?;
    stream.write_all(b"sink\n")?;
    // The request must not come together with what follows it.
    thread::sleep(Duration::from_millis(20));
    let block = vec![0; BLOCK];
    while Instant::now() < until {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.trim().parse()?)
}

fn fetch(address: SocketAddr, until: Instant) -> Outcome<u64> {
    let mut stream = connect(address)?;
    stream.write_all(b"source\n")?;
    let mut block = vec![0; BLOCK];
    let mut sum = 0;
    while Instant::now() < until {
        match stream.read(&mut block)? {
            0 => return Err("the server ended the stream".into()),
            count => sum += count as u64,
        }
    }
    Ok(sum)
}

/// How long each request of one connection took.
type Requests = fn(SocketAddr, Instant) -> Outcome<Vec<Duration>>;

fn latency(address: SocketAddr, time: Duration, connections: usize, load: Requests) -> Outcome {
    let begun = Instant::now();
    let mut times = on_each(connections, time, |until| load(address, until))?.concat();
    let elapsed = begun.elapsed();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    if times.is_empty() {
        return Err("no request was answered".into());
    }
    println!("{:.0} {:.0} {:.0}", times.len() as f64 / elapsed.as_secs_f64(), at(0.5), at(0.99));
    Ok(())
}

fn requests(address: SocketAddr, until: Instant) -> Outcome<Vec<Duration>> {
    let mut stream = BufReader::new(connect(address)?);
    stream.get_ref().set_nodelay(true)?;
    let mut times = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        ask(&mut stream, b"ping\n")?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

fn connections_one_by_one(address: SocketAddr, until: Instant) -> Outcome<Vec<Duration>> {
    let mut times = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let mut stream = BufReader::new(connect(address)?);
        // The server closes, so that it is not the client's port that has to rest (TIME_WAIT).
        ask(&mut stream, b"close\n")?;
        stream.read_line(&mut String::new())?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// A connection on which nothing is waited for without end.
fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(stream: &mut BufReader<TcpStream>, request: &[u8]) -> Outcome {
    stream.get_mut().write_all(request)?;
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 {
        return Err("the connection ended without an answer".into());
    }
    Ok(())
}

fn wait(address: SocketAddr) -> Outcome {
    let until = Instant::now() + PATIENCE;
    let answered = || -> Outcome { ask(&mut BufReader::new(connect(address)?), b"ping\n") };
    loop {
        match answered() {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(2)),
            Ok(()) => return Ok(()),
        }
    }
}
