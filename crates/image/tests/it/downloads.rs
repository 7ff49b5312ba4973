//! Downloads, from a server of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::Digest;
use image::base::download;

use crate::places::{chain, list};

/// Serves these files; a name that is missing is a 404, and `short` promises more than it sends.
fn serve(files: BTreeMap<&'static str, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, files) = (stream.unwrap(), Arc::clone(&files));
            std::thread::spawn(move || answer(stream, &files));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, files: &BTreeMap<&'static str, Vec<u8>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let name = request.split(['/', ' ']).nth(2).unwrap_or_default();
    if name == "slow" {
        std::thread::sleep(Duration::from_secs(5));
    }
    let answer = match files.get(name) {
        None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        Some(body) => {
            let length = body.len() + usize::from(name == "short") * 10;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            [head.as_bytes(), body].concat()
        }
    };
    stream.write_all(&answer).ok();
}

#[test]
fn a_download_is_whole_and_checked_or_nothing() {
    let body = vec![7; 300_000];
    let sum = Digest::of(&body).hex().to_owned();
    let server = serve(BTreeMap::from([
        ("base.tar.gz", body.clone()),
        ("base.tar.gz.sha256", format!("{sum}  base.tar.gz\n").into_bytes()),
        ("wrong.tar.gz", vec![8; 10]),
        ("wrong.tar.gz.sha256", format!("{sum}  wrong.tar.gz\n").into_bytes()),
        ("short", vec![7; 10]),
        ("short.sha256", format!("{sum}  short\n").into_bytes()),
        ("gone.sha256", format!("{sum}  gone\n").into_bytes()),
        ("slow.sha256", format!("{sum}  slow\n").into_bytes()),
        ("odd.sha256", b"<html>".to_vec()),
    ]));
    let temp = tempfile::tempdir().unwrap();
    let to = temp.path().join("base");
    let get = |name: &str, progress: &mut dyn FnMut(u64, Option<u64>)| {
        download(
            &format!("{server}/{name}"),
            &format!("{server}/{name}.sha256"),
            &to,
            Duration::from_secs(2),
            progress,
        )
    };
    for (name, wanted) in [
        ("wrong.tar.gz", "was promised"),
        ("short", "short"),
        ("gone", "404"),
        ("none", "404"),
        ("odd", "no checksum of `odd`"),
        ("slow", "timeout"),
    ] {
        let start = Instant::now();
        let error = chain(&get(name, &mut |_, _| {}).unwrap_err());
        assert!(error.contains(wanted) && error.contains(name), "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(4));
        assert_eq!(list(temp.path()), Vec::<String>::new(), "{name}");
    }
    let mut last = (0, None);
    assert_eq!(get("base.tar.gz", &mut |arrived, size| last = (arrived, size)).unwrap(), sum);
    assert_eq!(last, (300_000, Some(300_000)));
    assert_eq!(fs::read(&to).unwrap(), body);
}
