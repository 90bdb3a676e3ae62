//! Compiles the public `.proto` without an installed protobuf compiler.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/stvor/v1/relay.proto"];
    println!("cargo:rerun-if-changed={}", files[0]);
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.compile_fds(descriptors)?;
    Ok(())
}
