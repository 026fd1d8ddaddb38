//! `explain`: a session's answer, for people or as JSON.

use anyhow::Context as _;
use warptrace_api::{ByUnitQuestion, Explain, ExplainQuestion};
use warptrace_model::{NamedBy, Severity, Value};

use crate::args::{ExplainArgs, Global};
use crate::{cost, output, sessions, show};

pub(crate) fn run(global: &Global, args: &ExplainArgs) -> anyhow::Result<u8> {
    let paid = &args.cost;
    let (provider, file) = (paid.provider.as_deref(), paid.gpu_rates.as_deref());
    let prices = cost::prices(provider, file, &Value::Null)?;
    let folder = sessions::resolve(global, args.session.as_deref())?;
    let session =
        sessions::open(&folder).with_context(|| format!("cannot read the session {folder:?}"))?;
    let since_nanos = args
        .since
        .map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    let by = match (args.by_step, args.by_request) {
        (true, _) => Some(NamedBy::Step),
        (_, true) => Some(NamedBy::Request),
        _ => None,
    };
    if let Some(by) = by {
        let question = ByUnitQuestion {
            by,
            since_nanos,
            label: args.label.clone(),
        };
        let answer = warptrace_api::by_unit(&session, &question)?;
        if args.output.json {
            output::print_json(&answer)?;
        } else {
            output::print(&show::by_unit(&answer, output::paint(global)))?;
        }
        return Ok(u8::from(args.fail_on.is_some() && answer.slow > 0));
    }
    let question = ExplainQuestion {
        since_nanos,
        label: args.label.clone(),
        finding: args.finding.clone(),
        prices,
    };
    let answer = warptrace_api::explain(&session, &question)?;
    if args.output.json {
        output::print_json(&answer)?;
    } else {
        output::print(&text(global, &answer, args.finding.is_some()))?;
    }
    Ok(u8::from(
        args.fail_on.is_some_and(|limit| reaches(&answer, limit)),
    ))
}

/// The answer for people.
pub(crate) fn text(global: &Global, answer: &Explain, one: bool) -> String {
    show::explain(answer, output::paint(global), one)
}

fn reaches(answer: &Explain, limit: Severity) -> bool {
    answer
        .findings
        .iter()
        .any(|f| Severity::by_name(f.severity).is_some_and(|s| s >= limit))
}
