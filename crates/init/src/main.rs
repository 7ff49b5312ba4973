//! `inception-init`: the program of ours that runs inside of containers. See [`init::program`].
#![forbid(unsafe_code)]

fn main() {
    let args: Vec<String> = std::env::args().collect();
    std::process::exit(init::program::run(&args));
}
