//! What has to exist before the agent compiles.

#[path = "build/descriptors.rs"]
mod descriptors;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    descriptors::compile()
}
