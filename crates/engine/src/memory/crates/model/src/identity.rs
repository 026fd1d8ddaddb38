//! Who a process is within a distributed job, and where that is learnt from: what it says itself, what its records'
//! metadata say, and the variables that launchers set.
//!
//! It reads no environment: callers bring one, as a function from names to values.

use std::sync::Arc;

use crate::number_text::{is_blank, parse_int, trim};
use crate::{Int, Object, Value};

/// A process's place in a distributed job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub job_id: Option<Arc<str>>,
    /// `0..world_size`.
    pub rank: Int,
    /// Rank on its own node, `0..world_size`.
    pub local_rank: Int,
    /// At least 1.
    pub world_size: Int,
}

impl Default for Identity {
    /// The only process of a job without a name.
    fn default() -> Identity {
        Identity {
            job_id: None,
            rank: Int::ZERO,
            local_rank: Int::ZERO,
            world_size: Int::ONE,
        }
    }
}

/// Why an identity was refused. The texts are those of the Python package `stormlog` 0.4.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    NotAnInteger(&'static str),
    NotAString(&'static str),
    Blank(&'static str),
    BelowZero(&'static str),
    BelowOne(&'static str),
    NotBelowWorldSize(&'static str),
}

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdentityError::NotAnInteger(field) => write!(f, "{field} must be an integer"),
            IdentityError::NotAString(field) => write!(f, "{field} must be a string"),
            IdentityError::Blank(field) => write!(f, "{field} must be a non-empty string"),
            IdentityError::BelowZero(field) => write!(f, "{field} must be >= 0"),
            IdentityError::BelowOne(field) => write!(f, "{field} must be >= 1"),
            IdentityError::NotBelowWorldSize(field) => write!(f, "{field} must be < world_size"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// What a process says of its own identity, unchecked. `Value::Null` is nothing.
#[derive(Debug, Clone, Copy)]
pub struct StatedIdentity<'a> {
    pub job_id: &'a Value,
    pub rank: &'a Value,
    pub local_rank: &'a Value,
    pub world_size: &'a Value,
}

impl<'a> StatedIdentity<'a> {
    /// The four fields of an object; absent is nothing.
    pub fn of(object: &'a Object) -> StatedIdentity<'a> {
        let field = |name| object.get(name).unwrap_or(&Value::Null);
        StatedIdentity {
            job_id: field("job_id"),
            rank: field("rank"),
            local_rank: field("local_rank"),
            world_size: field("world_size"),
        }
    }

    fn or(self, other: StatedIdentity<'a>) -> StatedIdentity<'a> {
        let first = |a: &'a Value, b: &'a Value| if a.is_null() { b } else { a };
        StatedIdentity {
            job_id: first(self.job_id, other.job_id),
            rank: first(self.rank, other.rank),
            local_rank: first(self.local_rank, other.local_rank),
            world_size: first(self.world_size, other.world_size),
        }
    }
}

/// Rank, local rank and world size as launchers name them, in the order in which they are looked for.
const RANK_VARIABLES: [[&str; 3]; 3] = [
    ["RANK", "LOCAL_RANK", "WORLD_SIZE"],
    [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
    ],
    ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"],
];

const JOB_VARIABLES: [&str; 2] = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"];

/// A process's environment, as a function from a variable's name to its value.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Identity {
    /// Each field from `stated`, else from `metadata`, else from `environment`, else its default: no job, the only process,
    /// the local rank that is the rank.
    ///
    /// The environment is asked only for what is missing, and its ranks only if one of the three is. The first launcher whose
    /// rank and size are both set is believed.
    ///
    /// # Errors
    /// The first field that is not what it must be, or that does not fit the world's size.
    pub fn resolve(
        stated: StatedIdentity<'_>,
        metadata: Option<&Object>,
        environment: Option<Environment<'_>>,
    ) -> Result<Identity, IdentityError> {
        let stated = match metadata {
            Some(object) => stated.or(StatedIdentity::of(object)),
            None => stated,
        };
        let Some(environment) = environment else {
            return check(stated);
        };
        let job = match stated.job_id {
            Value::Null => JOB_VARIABLES
                .iter()
                .find_map(|name| environment(name).filter(|value| !is_blank(value)))
                .map_or(Value::Null, |value| Value::from(trim(&value))),
            _ => Value::Null,
        };
        let missing = [stated.rank, stated.local_rank, stated.world_size]
            .iter()
            .any(|value| value.is_null());
        let [rank, local_rank, world_size] = match missing {
            true => ranks_of(environment)?,
            false => [Value::Null, Value::Null, Value::Null],
        };
        check(stated.or(StatedIdentity {
            job_id: &job,
            rank: &rank,
            local_rank: &local_rank,
            world_size: &world_size,
        }))
    }
}

/// Rank, local rank and world size of the first launcher that set rank and size; nulls if none did.
fn ranks_of(environment: Environment<'_>) -> Result<[Value; 3], IdentityError> {
    for [rank_name, local_name, size_name] in RANK_VARIABLES {
        let (Some(rank_text), Some(size_text)) = (environment(rank_name), environment(size_name))
        else {
            continue;
        };
        let local_text = environment(local_name)
            .filter(|text| !is_blank(text))
            .unwrap_or_else(|| rank_text.clone());
        let int = |text: &str, field| parse_int(text).ok_or(IdentityError::NotAnInteger(field));
        let rank = int(&rank_text, "rank")?;
        let local_rank = int(&local_text, "local_rank")?;
        let world_size = int(&size_text, "world_size")?;
        at_least(&rank, 0, "rank")?;
        at_least(&local_rank, 0, "local_rank")?;
        at_least(&world_size, 1, "world_size")?;
        return Ok([rank, local_rank, world_size].map(Value::Int));
    }
    Ok([Value::Null, Value::Null, Value::Null])
}

fn at_least(value: &Int, least: i64, field: &'static str) -> Result<(), IdentityError> {
    match (*value >= least, least) {
        (true, _) => Ok(()),
        (false, 0) => Err(IdentityError::BelowZero(field)),
        (false, _) => Err(IdentityError::BelowOne(field)),
    }
}

fn check(stated: StatedIdentity<'_>) -> Result<Identity, IdentityError> {
    let job_id = match stated.job_id {
        Value::Null => None,
        Value::String(text) if is_blank(text) => return Err(IdentityError::Blank("job_id")),
        Value::String(text) => Some(Arc::from(&**text)),
        _ => return Err(IdentityError::NotAString("job_id")),
    };
    let int = |value: &Value, default: Int, least, field| {
        let value = match value {
            Value::Null => default,
            Value::Int(value) => value.clone(),
            _ => return Err(IdentityError::NotAnInteger(field)),
        };
        at_least(&value, least, field).map(|()| value)
    };
    let rank = int(stated.rank, Int::ZERO, 0, "rank")?;
    let local_rank = int(stated.local_rank, rank.clone(), 0, "local_rank")?;
    let world_size = int(stated.world_size, Int::ONE, 1, "world_size")?;
    if rank >= world_size {
        return Err(IdentityError::NotBelowWorldSize("rank"));
    }
    if local_rank >= world_size {
        return Err(IdentityError::NotBelowWorldSize("local_rank"));
    }
    Ok(Identity {
        job_id,
        rank,
        local_rank,
        world_size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stated: &[(&str, Value)], env: &[(&str, &str)]) -> Result<Identity, IdentityError> {
        let mut object = Object::new();
        for (name, value) in stated {
            object.insert(name, value.clone());
        }
        let environment = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_string())
        };
        Identity::resolve(StatedIdentity::of(&object), None, Some(&environment))
    }

    #[test]
    fn the_first_launcher_with_rank_and_size_fills_only_what_is_missing() {
        let slurm = [
            ("RANK", "9"),
            ("SLURM_PROCID", " 3 "),
            ("SLURM_NTASKS", "8"),
            ("SLURM_JOB_ID", " 77 "),
        ];
        let identity = of(&[("local_rank", 1.into())], &slurm).unwrap();
        assert_eq!(identity.rank, 3);
        assert_eq!(identity.local_rank, 1);
        assert_eq!(identity.world_size, 8);
        assert_eq!(identity.job_id.as_deref(), Some("77"));
    }

    #[test]
    fn a_launcher_whose_rank_does_not_parse_is_an_error_unless_nothing_is_missing() {
        let broken = [
            ("RANK", "x"),
            ("WORLD_SIZE", "2"),
            ("TORCHELASTIC_RUN_ID", "j"),
        ];
        assert_eq!(of(&[], &broken), Err(IdentityError::NotAnInteger("rank")));
        let all = [
            ("rank", 0.into()),
            ("local_rank", 0.into()),
            ("world_size", 2.into()),
        ];
        assert_eq!(of(&all, &broken).unwrap().job_id.as_deref(), Some("j"));
    }

    #[test]
    fn a_rank_needs_a_world_that_is_larger() {
        let alone = of(&[("rank", 3.into())], &[]);
        assert_eq!(alone, Err(IdentityError::NotBelowWorldSize("rank")));
        assert_eq!(of(&[], &[]), Ok(Identity::default()));
    }
}
