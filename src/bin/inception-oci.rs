//! The `inception-oci` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    cli::oci::main()
}
