//! Compiles `proto/` in pure Rust (protox): no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 8] = [
    "upfleet/v1/types.proto",
    "upfleet/v1/artifact.proto",
    "upfleet/v1/release.proto",
    "upfleet/v1/node.proto",
    "upfleet/v1/user.proto",
    "upfleet/v1/rollout.proto",
    "upfleet/v1/patch.proto",
    "upfleet/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    // Comments for documentation, imports for reflection.
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(FILES)?;
    let descriptors = compiler.encode_file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("upfleet_descriptor.bin"), &descriptors)?;

    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::codec::LeanCodec")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(compiler.file_descriptor_set())?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .btree_map([".upfleet.v1"])
        .build(&[".upfleet.v1"])?;
    Ok(())
}
