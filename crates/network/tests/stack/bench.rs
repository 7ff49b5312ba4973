//! Figures: throughput, latency and connections of a published port.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use super::fixture::{self, ECHO, SINK, Stack};

pub fn run(stack: &mut Stack) {
    println!("netd idle: {} kB private", stack.netd_private_kb());
    let bytes = vec![7; 1 << 20];
    let cpu = stack.netd_cpu();
    let start = Instant::now();
    let mut stream = TcpStream::connect(stack.port("app", SINK)).unwrap();
    const MEGABYTES: usize = 8192;
    for _ in 0..MEGABYTES {
        stream.write_all(&bytes).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let gigabits = MEGABYTES as f64 * 8.0 / 1024.0 / seconds;
    println!(
        "one stream to the service: {gigabits:.1} Gbit/s, netd used {:?} of {seconds:.2} s",
        stack.netd_cpu() - cpu
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let direct = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| fixture::echo(stream.unwrap())));
    for (name, port) in [("published", stack.port("app", ECHO)), ("loopback, direct", direct)] {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_nodelay(true).unwrap();
        const ROUNDS: u32 = 50_000;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
        }
        println!("round trip of 4 bytes, {name}: {:?}", start.elapsed() / ROUNDS);
    }

    const CONNECTIONS: u32 = 4000;
    let port = stack.port("app", ECHO);
    let one = || {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    let start = Instant::now();
    (0..CONNECTIONS).for_each(|_| one());
    println!(
        "one after another: {:.0} connections/s",
        f64::from(CONNECTIONS) / start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..CONNECTIONS / 8).for_each(|_| one()));
        }
    });
    println!("eight at a time: {:.0} connections/s", f64::from(CONNECTIONS) / start.elapsed().as_secs_f64());
    println!("netd afterwards: {} kB private", stack.netd_private_kb());
}
