//! `zonefs-fuse`, and by another name `mkfs.zonefs-fuse`: mkfs, mount, and reports.

mod cli;
mod daemon;
mod report;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

/// Puts the subcommand that the program's own name stands for in front of the arguments.
fn arguments(mut args: Vec<OsString>) -> (String, Vec<OsString>) {
    let path = args.first().cloned().unwrap_or_else(|| "zonefs-fuse".into());
    let name = std::path::Path::new(&path).file_name().unwrap_or(OsStr::new("zonefs-fuse")).to_owned();
    if name == "mkfs.zonefs-fuse" {
        args.insert(1, "mkfs".into());
    }
    (name.to_string_lossy().into_owned(), args)
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let (name, args) = arguments(std::env::args_os().collect());
    match cli::run(&name, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes say.
            eprintln!("{name}: {}", format!("{error:#}").replace('\n', " "));
            if error.is::<cli::AskedWrongly>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_mkfs_zonefs_fuse_stands_for_the_subcommand() {
        let (name, args) = arguments(vec!["/sbin/mkfs.zonefs-fuse".into(), "/dev/x".into()]);
        assert_eq!(name, "mkfs.zonefs-fuse");
        assert_eq!(args[1..], [OsString::from("mkfs"), OsString::from("/dev/x")]);
        let (name, args) = arguments(vec!["target/debug/zonefs-fuse".into(), "df".into()]);
        assert_eq!((name.as_str(), args.len()), ("zonefs-fuse", 2));
    }
}
