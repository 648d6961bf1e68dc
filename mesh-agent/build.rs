//! What the agent embeds: the BPF object and the descriptors of xDS.

use std::{env, path::PathBuf};

#[path = "build/descriptors.rs"]
mod descriptors;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=build.rs");
    embed_bpf_object()?;
    descriptors::compile()
}

/// Tells `capture/loader.rs` where the BPF object is: `MESH_EBPF_OBJECT`, or what
/// `cargo xtask ebpf` built.
fn embed_bpf_object() -> Result<(), Failure> {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let object = match env::var_os("MESH_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../target/ebpf/mesh-ebpf"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let object = object.canonicalize().map_err(|error| {
        format!("run `cargo xtask ebpf` first: no BPF object at {} ({error})", object.display())
    })?;
    println!("cargo::rustc-env=MESH_EBPF_OBJECT_PATH={}", object.display());
    Ok(())
}
