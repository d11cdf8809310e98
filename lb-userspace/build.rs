//! tmp
fn main() {
    println!(
        "cargo::rustc-env=XDP_LB_KERNEL_OBJECT={}/../target/kernel/xdp-lb.bpf.o",
        env!("CARGO_MANIFEST_DIR")
    );
}
