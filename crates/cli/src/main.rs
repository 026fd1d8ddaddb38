//! The command `warptrace`: parse, wire up, exit code.

mod annotate;
mod args;
mod check;
mod config;
mod cost;
mod daemon;
#[cfg(feature = "demo")]
mod demo;
mod explain;
#[cfg(feature = "files")]
mod export;
mod guest;
mod inference;
#[cfg(feature = "files")]
mod ingest;
mod launch;
mod log;
mod memory;
mod output;
mod query;
mod record;
mod replay;
mod resume;
mod runlog;
mod sessions;
mod show;
mod signals;
#[cfg(feature = "demo")]
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    log::start(cli.global.verbose);
    let Some(command) = cli.command else {
        return output::finish(output::print(&first_screen()).map(|()| 0));
    };
    let global = &cli.global;
    if matches!(command, Command::Record(_) | Command::Trace(_)) {
        warptrace_capture::heap::keep_small();
    }
    // Commands that run another one have codes of their own for their own failures.
    let result = match command {
        Command::Check(args) => check::run(global, &args),
        Command::Record(args) => return output::finish_as(125, record::record(global, &args)),
        Command::Trace(args) => {
            let own_failure = if args.command.is_empty() { 2 } else { 125 };
            return output::finish_as(own_failure, record::trace(global, &args));
        }
        Command::Explain(args) => explain::run(global, &args),
        Command::Query(args) => query::run(global, &args),
        Command::Annotate(args) => annotate::run(&args),
        Command::Resume(args) => resume::run(&args),
        Command::Outliers(args) => inference::outliers(global, &args),
        Command::Replay(args) => replay::run(global, &args),
        Command::Sessions(args) => sessions::run(global, &args),
        Command::Runlog(command) => runlog::run(global, &command),
        #[cfg(feature = "files")]
        Command::Ingest(args) => ingest::run(global, &args),
        #[cfg(feature = "files")]
        Command::Export(args) => export::run(global, &args),
        Command::Memory(args) => memory::run(global, &args),
        Command::Config(command) => config::run(&command),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(global, &args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "warptrace", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
        Command::Version(args) => version(args.json).map(|()| 0),
        #[cfg(feature = "demo")]
        Command::Workload(args) => workload::run(&args.options),
        Command::GatedExec(args) => {
            return ExitCode::from(launch::gated_exec(args.gate, &args.command));
        }
        Command::Symbolize => warptrace_capture::symbols::serve()
            .map(|()| 0)
            .map_err(Into::into),
        #[cfg(feature = "demo")]
        Command::Fault(args) => workload::fault(&args.options),
    };
    output::finish(result)
}

/// What a person sees who has typed nothing but our name.
fn first_screen() -> String {
    let demo = "warptrace demo                       see it at work: a real fault in a simulated GPU job\n  ";
    format!(
        "warptrace tells you why your GPU job is slow.\n\n  \
         {}warptrace record -- python train.py  record your own job, without root\n  \
         warptrace explain                    say where the time went\n\n\
         warptrace --help shows all commands.\n",
        if cfg!(feature = "demo") { demo } else { "" }
    )
}

fn version(json: bool) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    if json {
        let value = serde_json::json!({
            "version": version, "target": target, "profile": profile, "session_format": warptrace_store::FORMAT_VERSION,
        });
        return output::print(&format!("{value}\n"));
    }
    output::print(&format!(
        "warptrace {version} ({target}, {profile} build; writes session format {})\n",
        warptrace_store::FORMAT_VERSION
    ))
}
