//! Which devices a cgroup's processes may open, on version 2.
//!
//! Version 1 has files for this, which libcontainer writes. On version 2 it is a BPF program of the
//! type `BPF_PROG_TYPE_CGROUP_DEVICE` attached to the cgroup (Documentation/admin-guide/cgroup-v2.rst,
//! "Device controller"); libcontainer would need libbpf and libelf for it, so the program, a chain
//! of comparisons, is put together here and handed to bpf(2).
//!
//! ```text
//! r2 = type (low 16 bits of access_type), r3 = access (high 16), r4 = major, r5 = minor
//! per rule:  type differs? next   access not within? next   major/minor differ? next   r0 = 1; exit
//! at last:   r0 = 0; exit
//! ```

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// A device, or a class of them, and what may be done with it. Everything else may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `b` or `c`; absent for both.
    pub(crate) kind: Option<char>,
    /// Absent for all.
    pub(crate) major: Option<u32>,
    /// Absent for all.
    pub(crate) minor: Option<u32>,
    /// Out of `rwm`.
    pub(crate) access: &'static str,
}

/// What every container may use: making device nodes, and the harmless devices (runc's list).
pub(crate) const DEFAULT: &[Rule] = &[
    Rule {
        kind: Some('c'),
        major: None,
        minor: None,
        access: "m",
    },
    Rule {
        kind: Some('b'),
        major: None,
        minor: None,
        access: "m",
    },
    Rule {
        kind: Some('c'),
        major: Some(1),
        minor: Some(3),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(1),
        minor: Some(5),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(1),
        minor: Some(7),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(1),
        minor: Some(8),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(1),
        minor: Some(9),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(5),
        minor: Some(0),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(5),
        minor: Some(1),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(5),
        minor: Some(2),
        access: "rwm",
    },
    Rule {
        kind: Some('c'),
        major: Some(136),
        minor: None,
        access: "rwm",
    },
];

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JUMP_DIFFERENT: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

/// Puts the program together. Numbers of `struct bpf_cgroup_dev_ctx` and its constants are from
/// `linux/bpf.h`.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(AND, 0x02, 0, 0xffff),
        instruction(LOAD_WORD, 0x13, 0, 0),
        instruction(SHIFT_RIGHT, 0x03, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules {
        let mut block = Vec::new();
        if let Some(kind) = rule.kind {
            let kind = if kind == 'b' { 1 } else { 2 };
            block.push(instruction(JUMP_DIFFERENT, 0x02, 0, kind));
        }
        let denied = [('m', 1), ('r', 2), ('w', 4)]
            .into_iter()
            .filter(|(letter, _)| !rule.access.contains(*letter))
            .fold(0, |bits, (_, bit)| bits | bit);
        if denied != 0 {
            block.push(instruction(COPY, 0x31, 0, 0));
            block.push(instruction(AND, 0x01, 0, denied));
            block.push(instruction(JUMP_DIFFERENT, 0x01, 0, 0));
        }
        for (register, number) in [(0x04, rule.major), (0x05, rule.minor)] {
            if let Some(number) = number {
                block.push(instruction(
                    JUMP_DIFFERENT,
                    register,
                    0,
                    number.cast_signed(),
                ));
            }
        }
        block.push(instruction(MOVE, 0x00, 0, 1));
        block.push(instruction(EXIT, 0, 0, 0));
        let length = block.len();
        for (at, jump) in block.iter_mut().enumerate() {
            if jump.code == JUMP_DIFFERENT {
                // A block has at most nine instructions.
                jump.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.append(&mut block);
    }
    program.push(instruction(MOVE, 0x00, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0));
    program
}

/// Attaches the filter to the cgroup at `directory`; it stays until the cgroup is removed.
pub(crate) fn restrict_devices(directory: &Path, rules: &[Rule]) -> io::Result<()> {
    let program = load(&assemble(rules))?;
    let cgroup = std::fs::File::open(directory)?;
    attach(cgroup.as_raw_fd(), program.as_raw_fd())
}

/// The first fields of the kernel's `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Other programs above or beside this one go on counting: all must agree.
const ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let descriptor = bpf(PROG_LOAD, &attributes)?;
    #[expect(unsafe_code, reason = "bpf(2) has no wrapper")]
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn attach(cgroup: i32, program: i32) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.cast_unsigned(),
        program: program.cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "bpf(2) has no wrapper")]
    // SAFETY: the kernel reads at most the given size from the structure, and what its pointers
    // point to (instructions, a static string) outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allows(rules: &[Rule], kind: char, access: &str, major: u32, minor: u32) -> bool {
        let kind = if kind == 'b' { 1 } else { 2 };
        let access: u32 = access
            .chars()
            .map(|letter| match letter {
                'm' => 1,
                'r' => 2,
                _ => 4,
            })
            .sum();
        let context = [access << 16 | kind, major, minor];
        let program = assemble(rules);
        let mut registers = [0u32; 16];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: pair,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let immediate = immediate.cast_unsigned();
            at += 1;
            match code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset).expect("small") / 4];
                }
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                COPY => registers[to] = registers[from],
                MOVE => registers[to] = immediate,
                JUMP_DIFFERENT if registers[to] != immediate => {
                    at += usize::try_from(offset).expect("forwards");
                }
                JUMP_DIFFERENT => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_program() {
        let cgroups = super::super::Cgroups::detect().expect("there are cgroups");
        let path = format!("/wharf-test-devices-{}", std::process::id());
        let Some(directory) = cgroups
            .version_2_directory(&path)
            .filter(|_| rustix::process::geteuid().is_root())
        else {
            return;
        };
        std::fs::create_dir(&directory).expect("root may make cgroups");
        let result = restrict_devices(&directory, DEFAULT);
        let script = "echo $$ > $0/cgroup.procs; : < /dev/zero && echo zero; \
                      mknod $1 c 1 1 && echo made; (: < $1) || echo refused";
        let node = tempfile::tempdir().expect("a temporary directory can be made");
        let output = std::process::Command::new("sh")
            .args(["-c", script])
            .args([&directory, &node.path().join("mem")])
            .output()
            .expect("a shell runs");
        std::fs::remove_dir(&directory).expect("nobody is in it");
        result.expect("the verifier accepts it");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "zero\nmade\nrefused\n", "{output:?}");
    }

    #[test]
    fn the_program_decides_as_its_rules_say() {
        let check = |kind, access, major, minor, expected| {
            assert_eq!(
                allows(DEFAULT, kind, access, major, minor),
                expected,
                "{kind} {major}:{minor} {access}"
            );
        };
        check('c', "rw", 1, 3, true);
        check('c', "r", 136, 7, true);
        check('c', "m", 10, 200, true);
        check('c', "rw", 10, 200, false);
        check('c', "rm", 10, 200, false);
        check('b', "r", 8, 0, false);
        check('b', "rw", 1, 3, false);
        check('c', "r", 1, 1, false);
    }
}
