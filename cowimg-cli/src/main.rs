//! The program `cowimg`; see the library beside it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    cowimg_cli::main()
}
