//! The migrations are compiled in, and cargo does not see the macro that reads them.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
