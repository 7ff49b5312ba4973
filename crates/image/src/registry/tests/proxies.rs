//! Proxies: a tunnel to whatever is asked for, that remembers who asked.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use super::*;

/// What was asked of a proxy: the target of each CONNECT, and who asked.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A proxy that leads to one server, whatever name it is asked for.
fn proxy(to: &Server) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asked, to) = (Asked::default(), to.host.clone());
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, log, to) = (stream.unwrap(), Arc::clone(&log), to.clone());
            std::thread::spawn(move || tunnel(stream, &log, &to));
        }
    });
    (address, asked)
}

fn tunnel(client: TcpStream, log: &Asked, to: &str) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let lines: Vec<String> =
        reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(target) = lines.first().and_then(|line| line.strip_prefix("CONNECT ")) else { return };
    let target = target.split(' ').next().unwrap_or_default().to_owned();
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
    };
    log.lock().unwrap().push((target, lines.iter().find_map(header)));
    let server = TcpStream::connect(to).unwrap();
    let (mut up, mut down) = (server.try_clone().unwrap(), client);
    down.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    let mut back = down.try_clone().unwrap();
    let mut from_server = server;
    std::thread::spawn(move || {
        // Either side may go away at any time.
        std::io::copy(&mut from_server, &mut back).ok();
        back.shutdown(std::net::Shutdown::Both).ok();
    });
    std::io::copy(&mut reader, &mut up).ok();
    up.shutdown(std::net::Shutdown::Both).ok();
}

fn through(variables: &[(&str, &str)]) -> Access {
    let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
    let proxies = Proxies::new(|name| find(name).map(|(_, value)| (*value).to_owned()));
    let mut access = Access { proxies, ..access(None) };
    access.registries.entry("registry.invalid".to_owned()).or_default().plain_http = true;
    access
}

#[test]
fn a_proxy_leads_to_the_registry() {
    let sample = sample();
    let server = with_sample(&sample, |_| None);
    let (proxy, asked) = proxy(&server);
    let url = format!("http://ann:secret@{proxy}");
    let access = through(&[("HTTP_PROXY", &url), ("HTTPS_PROXY", &url)]);
    // No name server knows this one: the proxy is who has to.
    let (pulled, _) = Place::new().pull("registry.invalid/team/app:1", &access).unwrap();
    assert_eq!(pulled.digest, sample.digest);
    let asked = asked.lock().unwrap();
    // TLS is tried first.
    assert_eq!(asked.first().unwrap().0, "registry.invalid:443");
    assert!(asked.iter().skip(1).all(|(target, _)| target == "registry.invalid:80"), "{asked:?}");
    assert!(asked.iter().all(|(_, who)| who.as_deref() == Some("Basic YW5uOnNlY3JldA==")), "{asked:?}");
}

#[test]
fn what_is_excepted_is_reached_without() {
    let sample = sample();
    let server = with_sample(&sample, |_| None);
    let (proxy, asked) = proxy(&server);
    let url = format!("http://{proxy}");
    // This machine itself needs no exception.
    Place::new().pull(&server.name("team/app:1"), &through(&[("ALL_PROXY", &url)])).unwrap();
    assert!(asked.lock().unwrap().is_empty());
    // Without the proxy nobody knows the name.
    let access = through(&[("ALL_PROXY", &url), ("NO_PROXY", "example.org,.invalid")]);
    let error = Place::new().pull("registry.invalid/team/app:1", &access).unwrap_err();
    assert!(matches!(&error, Error::Registry(error) if error.is_unreachable()), "{error:?}");
    assert!(asked.lock().unwrap().is_empty());
}

#[test]
fn a_proxy_that_is_not_there_is_an_error() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let access = through(&[("ALL_PROXY", &format!("http://{gone}"))]);
    let error = Place::new().pull("registry.invalid/team/app:1", &access).unwrap_err();
    assert!(matches!(&error, Error::Registry(error) if error.is_unreachable()), "{error:?}");
}
