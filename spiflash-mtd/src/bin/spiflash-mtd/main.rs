//! `spiflash-mtd`: SPI flash chips as software.

mod background;
mod chips;
mod cuts;
mod fit;
mod image;
mod parts;
mod rber;
mod run;
mod script;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "spiflash-mtd",
    version,
    about = "A SPI flash chip as software, for flashrom, mtd-utils, spidev programs and firmware drivers.",
    after_help = "Example:\n  spiflash-mtd run\n  flashrom -p serprog:ip=127.0.0.1:4000 -r content.bin"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one or more chips: by serprog, as an MTD directory, as /dev/spidevB.C
    #[command(
        after_help = "Examples:\n  spiflash-mtd run\n  spiflash-mtd run --part MX25L25645G --image bios.flash --serprog 127.0.0.1:4001\n  spiflash-mtd run --part W25Q128JV --mtd /run/mtd --errors part --time real --trace wires.vcd\n  spiflash-mtd run --part W25Q128JV --part FM25V20A --spidev 0"
    )]
    Run(Box<run::Run>),
    /// List the parts
    #[command(after_help = "Example:\n  spiflash-mtd parts --json")]
    Parts(parts::Parts),
    /// Show a part, or check a part file of your own
    #[command(subcommand)]
    Part(parts::PartCommand),
    /// Print the bit errors of a simulated chip, as a test board measures them (CSV)
    #[command(after_help = "Example:\n  spiflash-mtd rber pages --errors slc-nand --pe 3000 --csv > T1.csv")]
    Rber(rber::RberArgs),
    /// Find the error parameters of a measurement
    #[command(after_help = "Example:\n  spiflash-mtd fit measured.csv > mychip.toml")]
    Fit(fit::FitArgs),
    /// Look into an image file, or take a raw image out of it or make it from one
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run a script of frames, waits and expectations on a fresh chip
    #[command(
        after_help = "Example:\n  spiflash-mtd script session.txt --part W25Q128JV --trace wires.vcd --log commands.jsonl"
    )]
    Script(script::ScriptArgs),
    /// Run a script once and cut the power of clones of its chip at every byte and within everything that takes time
    #[command(after_help = "Example:\n  spiflash-mtd cuts session.txt --part W25Q128JV --points 20")]
    Cuts(cuts::CutsArgs),
    /// Print the state diagram of the chip's operations
    #[command(after_help = "Example:\n  spiflash-mtd states")]
    States,
}

/// A fault in what was asked, not in doing it: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Run(_)) {
        end_with_the_pipe();
    }
    let result = match cli.command {
        Command::Run(args) => args.run(),
        Command::Parts(args) => args.run(),
        Command::Part(command) => command.run(),
        Command::Rber(args) => args.run(),
        Command::Fit(args) => args.run(),
        Command::Image(command) => command.run(),
        Command::Script(args) => args.run(),
        Command::Cuts(args) => args.run(),
        Command::States => {
            print!("{}", spiflash_mtd::states::diagram());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spiflash-mtd: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// A report whose reader has gone ends quietly, as other programs' do. Not for a server, which has sockets.
fn end_with_the_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action of SIGPIPE runs no code of this process; nothing here handles the signal.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        log::warn!("SIGPIPE: {error}");
    }
}
