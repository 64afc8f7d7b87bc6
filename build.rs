//! Turns `proto/wakala.proto`, the file that terminal makers use, into the types of `wakala::wire`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/wakala.proto");
    let files = protox::compile(["wakala.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
