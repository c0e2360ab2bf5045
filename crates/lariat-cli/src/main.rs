//! The `lariat` command.

fn main() {}
