//! `dashboard`: the stack as a page in a browser, served by this command for as long as it runs.
//!
//! One thread does all of HTTP in one loop of `poll` (`server`); others do nothing but wait for the supervisor (`feed`),
//! each as any command does, and hand over what they hear.

mod address;
mod connection;
mod feed;
mod open;
mod page;
mod recent;
mod request;
mod server;

use std::net::{SocketAddr, TcpListener};

use clap::Args;
use nix::sys::signal::Signal;

use crate::output::{self, Failure};
use crate::session::{Session, not_running};
use crate::signals::Signals;
use address::{Token, loopback};
use feed::Feed;
use page::Page;
use request::Gate;
use server::{End, Server};

/// `dashboard`.
#[derive(Debug, Args)]
pub(crate) struct Dashboard {
    /// Address of this machine's own; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = loopback)]
    listen: SocketAddr,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
}

/// Serves the page until a signal comes, or the end of the stack.
pub(crate) fn dashboard(session: &Session, arguments: &Dashboard) -> Result<u8, Failure> {
    let (name, client) = session.connect()?;
    let client = client.ok_or_else(|| not_running(&name))?;
    let bound = TcpListener::bind(arguments.listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    });
    let (address, listener) = bound.map_err(Failure::system(&format!("listen on {}", arguments.listen)))?;
    let token = Token::random()?;
    let link = format!("http://{address}/{}/", token.text());
    session
        .output
        .progress(&format!("the dashboard of stack `{name}`, until Ctrl-C or the end of the stack:"));
    output::print(&format!("{link}\n"))?;
    // Before signals are blocked, which the browser would inherit. It waits in the listener's queue.
    let opened = arguments.open.then(|| open::open(&session.paths.stack(&name), &link)).transpose();
    let _redirect = opened.unwrap_or_else(|error| {
        session.output.warning(&format!("no browser was opened: {error}"));
        None
    });
    let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT])?;
    let feed = Feed::start(session.paths.clone(), &name, client)?;
    let page = Page::new(&name);
    let server = Server::new(listener, Gate::new(address, token), page, feed);
    match server.run(&signals)? {
        End::Signal(signal) => Ok(128 + signal as u8),
        End::Stack => {
            session.output.progress(&format!("stack `{name}` has ended"));
            Ok(0)
        }
    }
}
