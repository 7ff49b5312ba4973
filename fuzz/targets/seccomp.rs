//! Any rules of `linux.seccomp`: they are refused, or make a program that the kernel takes and that ends.
#![no_main]

use container::seccomp::compile;
use oci_spec::runtime::LinuxSeccomp;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(rules) = serde_json::from_slice::<LinuxSeccomp>(text) else { return };
    let Ok(filter) = compile(&rules) else { return };
    let (program, rest) = filter.program.as_chunks::<8>();
    assert!(rest.is_empty() && !program.is_empty() && program.len() <= 4096);
    // As `bpf_check_classic` and `seccomp_check_filter` of the kernel: known instructions, loads of whole words of
    // `struct seccomp_data`, jumps that stay in the program, no way past its end.
    for (at, [a, b, if_true, if_false, c, d, e, f]) in program.iter().enumerate() {
        let operand = u32::from_ne_bytes([*c, *d, *e, *f]);
        let left = program.len() - at - 1;
        match u16::from_ne_bytes([*a, *b]) {
            0x20 => assert!(operand < 64 && operand % 4 == 0),
            0x54 => {}
            0x05 => assert!((operand as usize) < left),
            0x15 | 0x25 | 0x35 => assert!(usize::from(*if_true.max(if_false)) < left),
            0x06 => continue,
            other => panic!("instruction {other:#x}"),
        }
        assert!(left > 0);
    }
    assert_eq!(filter.notify, filter.listener_path.is_some() && filter.flags & 8 != 0);
});
