//! Whether a sender may label a process.

use super::Refusal;

/// What is known of the process that a line names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its real user id; `None` when that cannot be read, as of a process that is gone.
    pub uid: Option<u32>,
    /// Its start, clock ticks since boot; 0 when that cannot be read.
    pub start_ticks: u64,
}

/// Whether a sender of user `sender_uid` may label `target`, of which it claims `start_time`.
///
/// Everybody may label processes of their own user. The superuser may label any: a sidecar runs as root and its job does
/// not, and root could enter the process anyway. (The existing agent, v0.17, has no such exception.)
///
/// # Errors
/// In this order: [`Refusal::StartTimeMismatch`], [`Refusal::PidUnverifiable`], [`Refusal::PidNotOwned`].
pub fn check_scope(
    start_time: Option<u64>,
    sender_uid: u32,
    target: Target,
) -> Result<(), Refusal> {
    if let Some(claimed) = start_time
        && target.start_ticks != 0
        && claimed != target.start_ticks
    {
        return Err(Refusal::StartTimeMismatch);
    }
    match target.uid {
        None => Err(Refusal::PidUnverifiable),
        Some(uid) if uid == sender_uid || sender_uid == 0 => Ok(()),
        Some(_) => Err(Refusal::PidNotOwned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_compared_first_then_the_owner() {
        let target = |uid, start_ticks| Target { uid, start_ticks };
        let cases = [
            (
                Some(7),
                1000,
                target(None, 5),
                Err(Refusal::StartTimeMismatch),
            ),
            (
                Some(5),
                1000,
                target(None, 5),
                Err(Refusal::PidUnverifiable),
            ),
            (Some(7), 1000, target(Some(1000), 0), Ok(())),
            (None, 1000, target(Some(1001), 5), Err(Refusal::PidNotOwned)),
            (None, 1000, target(Some(0), 5), Err(Refusal::PidNotOwned)),
            (None, 0, target(Some(1001), 5), Ok(())),
            (None, 0, target(None, 5), Err(Refusal::PidUnverifiable)),
        ];
        for (start, sender, target, want) in cases {
            assert_eq!(check_scope(start, sender, target), want, "{target:?}");
        }
    }
}
