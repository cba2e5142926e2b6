//! Prints the state diagram of the chip's operations, as docs/spi-states.md has it.
#![allow(clippy::print_stdout)]

fn main() {
    print!("{}", spiflash_mtd::states::diagram());
}
