//! hpml.
mod config;
mod error;
mod units;
fn main() {
    println!("{}", config::documented_defaults());
}
