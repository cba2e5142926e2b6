//! Going into the background once the chips are served.
//!
//! The command starts itself again with `--foreground` and waits for its first line, which says that it serves, or for its
//! end. So `run` returns when the chips can be used, and what fails in the child is the command's failure.

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the log goes when nobody says: where this user may write.
pub(crate) fn usual_log() -> PathBuf {
    let run = Path::new("/run/storlab");
    let name = format!("spiflash-{}.log", std::process::id());
    if nix::unistd::geteuid().is_root() && std::fs::create_dir_all(run).is_ok() {
        return run.join(name);
    }
    std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from).join(name)
}

/// Starts this command again to stay, with its log in `log`; returns the line it says when it serves.
pub(crate) fn start(log: &Path) -> anyhow::Result<String> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("the log {} cannot be opened", log.display()))?;
    let begin = file.metadata().map_or(0, |data| data.len());
    let program = std::env::current_exe().context("this program's own file cannot be found")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--foreground")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .process_group(0)
        .spawn()
        .context("the background process cannot be started")?;
    match first_line(&mut child) {
        Some(line) => Ok(line),
        None => {
            let _ = child.kill();
            let end = child.wait().context("the background process cannot be waited for")?;
            let said = last_line(log, begin).unwrap_or_else(|| format!("it ended ({end}) without a word"));
            let said = said.strip_prefix("spiflash-mtd: ").unwrap_or(&said).to_owned();
            if end.code() == Some(2) {
                return Err(crate::Usage(said).into());
            }
            bail!("{said}");
        }
    }
}

/// The child's first line; `None` when it ended or said nothing in time.
fn first_line(child: &mut Child) -> Option<String> {
    let out = child.stdout.take()?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if BufReader::new(out).read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            // Nobody waits after the time-out.
            let _ = tell.send(line.trim_end().to_owned());
        }
    });
    told.recv_timeout(PATIENCE).ok()
}

fn last_line(log: &Path, begin: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(begin)).ok()?;
    let mut text = String::new();
    file.take(1 << 20).read_to_string(&mut text).ok()?;
    text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
}
