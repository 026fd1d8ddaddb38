//! Whether an address can be where a call returns to.
//!
//! A stack is read along the frame pointers. Code that uses that register for something else leads it astray, to whatever
//! lies in memory there. A true return address follows a call instruction, which seldom comes before another value.
//!
//! Instructions: Intel 64 manual, volume 2, "CALL"; Arm architecture manual, "BL", "BLR".

/// Bytes before a return address that are looked at.
pub(super) const BYTES: usize = 7;

/// Whether the code that ends where a call would return ends in a call. `before` are the bytes up to there.
pub(super) fn ends_in_call(before: &[u8]) -> bool {
    if cfg!(target_arch = "x86_64") {
        x86_64(before)
    } else {
        aarch64(before)
    }
}

fn x86_64(before: &[u8]) -> bool {
    let from_end = |n: usize| before.len().checked_sub(n).and_then(|at| before.get(at..));
    // call rel32
    if from_end(5).is_some_and(|b| b[0] == 0xe8) {
        return true;
    }
    // call r/m64: ff /2, ModRM, maybe SIB, displacement of 0, 1 or 4 bytes.
    (2..=7).any(|length| {
        let Some(b) = from_end(length) else {
            return false;
        };
        let (mode, extension, rm) = (b[1] >> 6, b[1] >> 3 & 7, b[1] & 7);
        if b[0] != 0xff || extension != 2 {
            return false;
        }
        let sib = usize::from(mode != 3 && rm == 4);
        let displacement = match (mode, rm) {
            (1, _) => 1,
            (2, _) | (0, 5) => 4,
            (0, 4) if b.get(2).is_some_and(|sib| sib & 7 == 5) => 4,
            _ => 0,
        };
        length == 2 + sib + displacement
    })
}

fn aarch64(before: &[u8]) -> bool {
    let Some(word) = before.last_chunk::<4>().map(|b| u32::from_le_bytes(*b)) else {
        return false;
    };
    // BL; BLR, and BLRA* of pointer authentication.
    word >> 26 == 0b10_0101 || word & 0xfeff_f000 == 0xd63f_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_call_on_x86_64_is_known_and_others_are_not() {
        for call in [
            &[0x90, 0x90, 0xe8, 1, 2, 3, 4][..],
            &[0xff, 0xd0],                   // call rax
            &[0x41, 0xff, 0xd4],             // call r12
            &[0xff, 0x10],                   // call [rax]
            &[0xff, 0x50, 0x18],             // call [rax+0x18]
            &[0xff, 0x54, 0x24, 8],          // call [rsp+8]
            &[0xff, 0x15, 1, 2, 3, 4],       // call [rip+…]
            &[0xff, 0x90, 0, 1, 0, 0],       // call [rax+0x100]
            &[0xff, 0x14, 0xc5, 0, 0, 0, 0], // call [rax*8+…]
            &[0xff, 0x94, 0x24, 0, 1, 0, 0], // call [rsp+0x100]
        ] {
            assert!(x86_64(call), "{call:x?}");
        }
        for other in [
            &[0x90; 7][..],
            &[0xff, 0xe0],       // jmp rax
            &[0x48, 0x89, 0xc7], // mov rdi, rax
            &[0xe9, 1, 2, 3, 4], // jmp
            &[],
            &[0xd0],
        ] {
            assert!(!x86_64(other), "{other:x?}");
        }
    }

    #[test]
    fn calls_on_aarch64_are_known() {
        for call in [0x9400_0010_u32, 0x97ff_fff0, 0xd63f_0100] {
            assert!(aarch64(&call.to_le_bytes()), "{call:x}");
        }
        for other in [0x1400_0010_u32, 0xd61f_0100, 0xd65f_03c0, 0] {
            assert!(!aarch64(&other.to_le_bytes()), "{other:x}");
        }
        assert!(!aarch64(&[0, 0x94]));
    }
}
