use lb_tests::translated::paths::{all, execute, Loaded};
#[test]
fn quick() {
    let mut l = Loaded::default();
    for p in all() {
        match execute(&mut l, &p) {
            Ok(e) => println!("{:45} insns {} branches {} stack {} calls {:?} own {} lines {:?}", p.name, e.instructions, e.branches, e.stack_accesses, e.kernel_calls, e.own_calls, e.lines),
            Err(e) => println!("{:45} {e:#}", p.name),
        }
    }
}
