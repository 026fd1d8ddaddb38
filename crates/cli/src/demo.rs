//! `demo`: a real fault in a simulated GPU job, recorded for real, and explained.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use warptrace_capture::ebpf::kernel::Kernel;
use warptrace_engine::Rules;
use warptrace_lab::{Fault, Injected, Plan, Scenario, Truth, Watch};
use warptrace_model::cost::Prices;

use crate::args::{Backend, DemoArgs, Global};
use crate::config::JsonLines;
use crate::launch::Program;
use crate::record::{self, Outcome, Recorded, Trace, Watched};
use crate::signals::Signals;
use crate::workload::Task;
use crate::{explain, guest, output, sessions};

/// Names the file that is the simulated device. Each demo has its own, so that two on one machine do not meet.
const DEVICE_VARIABLE: &str = "SIMGPU_SHM";

pub(crate) fn run(global: &Global, args: &DemoArgs) -> anyhow::Result<u8> {
    if args.list {
        return list(args.output.json).map(|()| 0);
    }
    let Some(scenario) = warptrace_lab::find(&args.scenario) else {
        let names: Vec<_> = warptrace_lab::scenarios().iter().map(|s| s.name).collect();
        bail!(
            "no scenario {:?} (there are: {})",
            args.scenario,
            names.join(", ")
        );
    };
    let backend = match args.capture {
        Some(backend) => backend,
        None => usual_backend(),
    };
    if std::env::var_os(DEVICE_VARIABLE).is_none() {
        return Err(start_anew());
    }
    let signals = Signals::catch()?;
    let dirs = sessions::data_dir(global)?;
    let folder = guest::folder(&dirs.path)?;
    let length = args.duration.unwrap_or(scenario.usual);
    let plan = scenario.plan(length, spare_cpu()?);
    if !args.output.json {
        let by = match backend {
            Backend::Ebpf => "eBPF",
            Backend::Preload => "preload",
        };
        eprintln!(
            "{}: {}, on simgpu (no real GPU), recorded by {by}",
            scenario.name, scenario.summary
        );
    }

    let run = Run {
        plan: &plan,
        folder: &folder,
        scenario,
    };
    let (session, outcome, truth) =
        run.record(global, backend, length, &signals, !args.output.json)?;
    if let Some(path) = &args.truth {
        let text = serde_json::to_string(&truth)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {path:?}"))?;
    }
    if outcome.interrupted {
        eprintln!("interrupted: explaining what was recorded until then");
    } else if outcome.exit_code != 0 {
        bail!("the workload ended with exit code {}", outcome.exit_code);
    }
    let answer = session.answer(&Prices::default())?;
    if args.output.json {
        output::print_json(&answer)?;
    } else {
        let id = &answer.session;
        let text = explain::text(global, &answer, false);
        output::print(&format!(
            "{text}\nsession {id}      next: warptrace record -- python train.py\n"
        ))?;
    }
    Ok(0)
}

/// Starts this command again with a device of its own in the environment, which we and the workload both read: a program
/// cannot safely change its own. Returns only when that fails.
fn start_anew() -> anyhow::Error {
    let device = format!("/dev/shm/simgpu-demo-{}", std::process::id());
    let error = std::env::current_exe().map(|own| {
        Command::new(own)
            .args(std::env::args_os().skip(1))
            .env(DEVICE_VARIABLE, device)
            .exec()
    });
    match error {
        Ok(e) | Err(e) => anyhow::Error::new(e).context("cannot start the demo"),
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    let scenarios = warptrace_lab::scenarios();
    if json {
        let rows: Vec<_> = scenarios
            .iter()
            .map(|s| {
                serde_json::json!({
                    "name": s.name, "aliases": s.aliases, "summary": s.summary, "first_cause": s.expect,
                    "usual_secs": s.usual.as_secs(),
                })
            })
            .collect();
        return output::print_json(&rows);
    }
    let mut text = String::new();
    for s in scenarios {
        text += &format!("{:<18} {:>3} s  {}\n", s.name, s.usual.as_secs(), s.summary);
    }
    output::print(&text)
}

/// eBPF where it is allowed.
fn usual_backend() -> Backend {
    match Kernel::probe().refusal() {
        None => Backend::Ebpf,
        Some(why) => {
            tracing::info!(%why, "recording by preload");
            Backend::Preload
        }
    }
}

/// The last CPU that we may use: the first ones serve more interrupts.
fn spare_cpu() -> anyhow::Result<usize> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))
        .context("cannot see our CPUs")?;
    (0..nix::sched::CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .context("no CPU may be used")
}

struct Run<'a> {
    plan: &'a Plan,
    folder: &'a Path,
    scenario: &'a Scenario,
}

impl Run<'_> {
    /// Runs the workload with its faults, recorded. Returns the session, how it ended, and the truth.
    fn record(
        &self,
        global: &Global,
        backend: Backend,
        length: Duration,
        signals: &Signals,
        talk: bool,
    ) -> anyhow::Result<(Recorded, Outcome, Truth)> {
        let own = std::env::current_exe().context("cannot find our own program")?;
        let scratch = Scratch::new(&sessions::data_dir(global)?.path)?;
        let cudart = self.folder.join("simgpu/libcudart.so.12");
        let task = Task::Train {
            workload: self.plan.workload.clone(),
            cudart: cudart.clone(),
            data: scratch.0.clone(),
        };
        let program = Program {
            path: own.clone(),
            command: vec![
                own.clone().into(),
                "simgpu-workload".into(),
                serde_json::to_string(&task)?.into(),
            ],
        };
        let mut env: Vec<(OsString, OsString)> =
            vec![("LD_LIBRARY_PATH".into(), guest::simgpu_path(self.folder))];
        env.extend(
            self.plan
                .env
                .iter()
                .map(|(k, v)| (OsString::from(*k), OsString::from(v))),
        );
        // A demo is short: what its start cost is judged against the recording that there is, not against five minutes.
        let mut rules = Rules::default();
        rules.cold_start.min_recording_nanos = 0;
        let job = Watched {
            program: &program,
            env: env.clone(),
            gpu_library: Some(self.folder.join("simgpu/libnvidia-ml.so.1")),
            sample_every: Duration::from_millis(250),
            rules,
            annotate: false,
            paused: false,
            settings: None,
        };
        let bar = progress(talk, length);
        let mut injecting = None;
        let mut watch = None;
        let mut pid = 0;
        let mut started = |started: u32| {
            pid = started;
            watch = Watch::start(started).ok();
            injecting = inject(self.plan, &own, &cudart, &env).ok();
        };
        let mut outcome = Outcome::default();
        let session = match backend {
            Backend::Preload => {
                record::with_preload(global, &job, signals, &mut started, &mut outcome)
            }
            Backend::Ebpf => {
                let view = Trace {
                    ring_size: 8 << 20,
                    json: JsonLines::Off,
                    heartbeat: Duration::from_secs(60),
                    limit: None,
                    libraries: guest::simgpu_libraries(self.folder),
                };
                record::with_ebpf(global, &job, &view, signals, &mut started, &mut outcome)
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let injected =
            injecting.map(|thread: JoinHandle<Vec<Injected>>| thread.join().unwrap_or_default());
        let truth = Truth {
            scenario: self.scenario.name.to_owned(),
            pid,
            injected: injected.unwrap_or_default(),
            run_delay: watch.map(Watch::finish).unwrap_or_default(),
        };
        if let Some(device) = std::env::var_os(DEVICE_VARIABLE) {
            let _ = std::fs::remove_file(device);
        }
        Ok((session?, outcome, truth))
    }
}

/// Starts each fault when its time has come, as a process of its own, and waits for them all.
fn inject(
    plan: &Plan,
    own: &Path,
    cudart: &Path,
    env: &[(OsString, OsString)],
) -> anyhow::Result<JoinHandle<Vec<Injected>>> {
    let began = std::time::Instant::now();
    let faults = plan.faults.clone();
    let (own, cudart, env) = (own.to_owned(), cudart.to_owned(), env.to_vec());
    let thread = std::thread::Builder::new()
        .name("lab-inject".into())
        .spawn(move || {
            let mut running: Vec<(Child, Injected)> = Vec::new();
            for (after, fault) in faults {
                std::thread::sleep(after.saturating_sub(began.elapsed()));
                let name = match fault {
                    Fault::Hog(_) => warptrace_lab::HOG_NAME,
                    Fault::GpuHog { .. } => "simgpu-hog",
                };
                let Ok(options) = serde_json::to_string(&(&fault, &cudart)) else {
                    continue;
                };
                let mut command = Command::new(&own);
                command
                    .arg("lab-fault")
                    .arg(options)
                    .envs(env.iter().map(|(k, v)| (k, v)));
                if let Ok(child) = command.spawn() {
                    let injected = Injected {
                        name: name.to_owned(),
                        pid: child.id(),
                        start_boot_ns: warptrace_capture::clock::boot_now().0,
                        end_boot_ns: 0,
                    };
                    running.push((child, injected));
                }
            }
            running
                .into_iter()
                .map(|(mut child, mut injected)| {
                    let _ = child.wait();
                    injected.end_boot_ns = warptrace_capture::clock::boot_now().0;
                    injected
                })
                .collect()
        })?;
    Ok(thread)
}

/// A bar that fills in `length`, on a terminal.
fn progress(talk: bool, length: Duration) -> Option<ProgressBar> {
    if !talk || !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(length.as_millis() as u64);
    let style = ProgressStyle::with_template("  recording {bar:40} {elapsed} of {msg}").ok()?;
    bar.set_style(style.progress_chars("━╸─"));
    bar.set_message(format!("{} s", length.as_secs()));
    let ticking = bar.clone();
    let began = std::time::Instant::now();
    std::thread::Builder::new()
        .name("wt-progress".into())
        .spawn(move || {
            while !ticking.is_finished() {
                ticking.set_position(began.elapsed().as_millis() as u64);
                std::thread::sleep(Duration::from_millis(100));
            }
        })
        .ok()?;
    Some(bar)
}

/// A folder for the training data, on the disk where sessions are (a tmpfs would have no disk to wait for).
struct Scratch(PathBuf);

impl Scratch {
    fn new(base: &Path) -> anyhow::Result<Scratch> {
        let folder = base.join(format!("demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {folder:?}"))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
