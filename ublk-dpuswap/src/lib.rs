//! A swap device on compressed remote memory (RMML), and the memory node it borrows from.
