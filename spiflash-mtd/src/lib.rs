//! A SPI flash chip as software: the chip's command-frame decoder.
