//! What the house does to itself.
fn main() {}
