//! What a command line says: which engine, what model, where its metrics are.
//!
//! It goes by the program that runs, not by words anywhere in the line, so that `docker run … vllm serve`, `grep vllm` and a
//! wrapper such as `nsys profile vllm serve` are no engines: what they start is, as a process of its own.
//!
//! Source: the command line references of vLLM 0.11 to 0.33 (`vllm serve`), SGLang 0.5.23 (`sglang serve`),
//! text-generation-inference 3.3 (`text-generation-launcher`) and Triton Inference Server 2.60 (`tritonserver --help`).

use warptrace_model::serving::Engine;

/// Arguments that are looked at.
const MAX_ARGUMENTS: usize = 4096;
/// Longest name of a model, bytes.
const MAX_MODEL: usize = 256;

/// A command line that starts an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServingCommand {
    pub engine: Engine,
    /// As given: a name of the hub or a path. What clients ask for, where the line says that (`--served-model-name`).
    pub model: Option<String>,
    pub via: Via,
}

/// How an engine's metrics are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// HTTP, at the first of these ports at which something listens; never empty.
    Http { ports: Vec<u16> },
    /// HTTPS, with a certificate that is hardly for this machine's name.
    Https,
    /// HTTP on a Unix socket.
    UnixSocket,
    /// Not at all; the argument that says so, or whose lack does.
    Off(&'static str),
}

/// The engine that a process is by its command line, if it is one.
///
/// `variable` is its environment, which Triton, vLLM and SGLang take no port from, but TGI does; return `None` where it cannot
/// be read. An empty argument is an argument. Of an argument that is given twice the last one counts, as the engines have it.
/// Cost: one pass over the arguments, some µs; at most 4,096 of them are looked at.
pub fn classify(
    argv: &[impl AsRef<str>],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<ServingCommand> {
    let argv: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
    let argv = &argv[..argv.len().min(MAX_ARGUMENTS)];
    let (program, rest) = program(argv)?;
    match program {
        Program::Vllm => Some(vllm(rest)),
        Program::Sglang => Some(sglang(rest)),
        Program::Tgi => Some(tgi(rest, variable)),
        Program::Triton => Some(triton(rest)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Vllm,
    Sglang,
    Tgi,
    Triton,
}

/// Which of the programs runs, and its arguments; for `vllm serve` those after `serve`.
fn program<'a>(argv: &'a [&'a str]) -> Option<(Program, &'a [&'a str])> {
    let (first, rest) = argv.split_first()?;
    match base(first) {
        "text-generation-launcher" => return Some((Program::Tgi, rest)),
        "tritonserver" => return Some((Program::Triton, rest)),
        "vllm" | "sglang" => return script(base(first), rest),
        _ => {}
    }
    if !is_python(base(first)) {
        return None;
    }
    match python(rest)? {
        (Python::Module(module), rest) => module_of(module, rest),
        (Python::Script(path), rest) => match base(path) {
            name @ ("vllm" | "sglang") => script(name, rest),
            _ => module_of(&as_module(path)?, rest),
        },
    }
}

/// A console script with its subcommand.
fn script<'a>(name: &str, rest: &'a [&'a str]) -> Option<(Program, &'a [&'a str])> {
    let (command, rest) = rest.split_first()?;
    match (name, *command) {
        ("vllm", "serve") => Some((Program::Vllm, rest)),
        ("sglang", "serve") => Some((Program::Sglang, rest)),
        _ => None,
    }
}

fn module_of<'a>(module: &str, rest: &'a [&'a str]) -> Option<(Program, &'a [&'a str])> {
    match module {
        "vllm" | "vllm.entrypoints.cli.main" => script("vllm", rest),
        "sglang" | "sglang.cli.main" => script("sglang", rest),
        "sglang.launch_server" => Some((Program::Sglang, rest)),
        _ => {
            // api_server, openai.api_server, grpc_server; not run_batch, which serves nobody.
            let server = module.starts_with("vllm.entrypoints.") && module.ends_with("server");
            server.then_some((Program::Vllm, rest))
        }
    }
}

/// The module that a script in an installed package is.
fn as_module(path: &str) -> Option<String> {
    let path = path.strip_suffix(".py")?.trim_start_matches('/');
    let start = |package: &str| {
        let inside = path.rfind(&format!("/{package}")).map(|at| at + 1);
        inside.or_else(|| path.starts_with(package).then_some(0))
    };
    let start = start("vllm/entrypoints/").max(start("sglang/"))?;
    Some(path[start..].replace('/', "."))
}

enum Python<'a> {
    Module(&'a str),
    Script(&'a str),
}

/// What an interpreter with these arguments runs, and the arguments of that.
///
/// Source: Python 3.13, *Command line and environment*: of its options `-W` and `-X` take a word, `-m` and `-c` end them, and
/// single letters may stand together.
fn python<'a>(argv: &'a [&'a str]) -> Option<(Python<'a>, &'a [&'a str])> {
    let mut i = 0;
    while let Some(argument) = argv.get(i) {
        i += 1;
        let Some(letters) = argument.strip_prefix('-') else {
            return Some((Python::Script(argument), &argv[i..]));
        };
        if letters.is_empty() {
            return None;
        }
        if let Some(long) = letters.strip_prefix('-') {
            match long {
                "" => return Some((Python::Script(argv.get(i)?), &argv[i + 1..])),
                "check-hash-based-pycs" => i += 1,
                _ => {}
            }
            continue;
        }
        for (at, letter) in letters.char_indices() {
            let joined = &letters[at + letter.len_utf8()..];
            match letter {
                'm' if joined.is_empty() => {
                    return Some((Python::Module(argv.get(i)?), &argv[i + 1..]));
                }
                'm' => return Some((Python::Module(joined), &argv[i..])),
                'c' => return None,
                'W' | 'X' => {
                    i += usize::from(joined.is_empty());
                    break;
                }
                _ => {}
            }
        }
    }
    None
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `python`, `python3`, `python3.12`, `pypy3`, …
fn is_python(name: &str) -> bool {
    ["python", "pypy"].iter().any(|stem| {
        name.strip_prefix(stem)
            .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
    })
}

fn vllm(argv: &[&str]) -> ServingCommand {
    let flags = Flags(argv);
    let named = flags.value(&["--served-model-name"]);
    let model = named
        .or_else(|| flags.positional())
        .or_else(|| flags.value(&["--model"]));
    let via = if flags.has("--headless") {
        Via::Off("--headless")
    } else if flags.has("--disable-log-stats") {
        Via::Off("--disable-log-stats")
    } else if flags.value(&["--uds"]).is_some() {
        Via::UnixSocket
    } else if flags.value(&["--ssl-certfile"]).is_some() {
        Via::Https
    } else {
        Via::Http {
            ports: flags.ports(&["--port"], &[8000]),
        }
    };
    command(Engine::Vllm, model, via)
}

fn sglang(argv: &[&str]) -> ServingCommand {
    let flags = Flags(argv);
    let named = flags.value(&["--served-model-name"]);
    let model = named
        .or_else(|| flags.positional())
        .or_else(|| flags.value(&["--model-path", "--model"]));
    // What a file of settings says is not known here.
    let has_file = flags.value(&["--config"]).is_some();
    let via = if !flags.has("--enable-metrics") && !has_file {
        Via::Off("no --enable-metrics")
    } else if flags.value(&["--ssl-certfile"]).is_some() {
        Via::Https
    } else {
        Via::Http {
            ports: flags.ports(&["--port"], &[30000]),
        }
    };
    command(Engine::Sglang, model, via)
}

fn tgi(argv: &[&str], variable: &dyn Fn(&str) -> Option<String>) -> ServingCommand {
    let flags = Flags(argv);
    let (model_there, port_there) = (variable("MODEL_ID"), variable("PORT"));
    let model = flags.value(&["--model-id"]).or(model_there.as_deref());
    let port_there = port_there.and_then(|p| port(&p));
    let ports = match port_there {
        Some(port) => flags.ports(&["--port", "-p"], &[port]),
        // Its own default, its image's, and what ingero 0.17.0 takes for the default.
        None => flags.ports(&["--port", "-p"], &[3000, 80, 8080]),
    };
    command(Engine::Tgi, model, Via::Http { ports })
}

fn triton(argv: &[&str]) -> ServingCommand {
    let flags = Flags(argv);
    let off = flags.value(&["--allow-metrics"]).is_some_and(|value| {
        ["false", "0", "off", "no"].contains(&value.to_ascii_lowercase().as_str())
    });
    let via = match off {
        true => Via::Off("--allow-metrics=false"),
        false => Via::Http {
            ports: flags.ports(&["--metrics-port"], &[8002]),
        },
    };
    // Its models are a repository of many.
    command(Engine::Triton, None, via)
}

fn command(engine: Engine, model: Option<&str>, via: Via) -> ServingCommand {
    let model = model
        .map(str::trim)
        .filter(|m| !m.is_empty() && m.len() <= MAX_MODEL && !m.contains(char::is_control))
        .map(str::to_owned);
    ServingCommand { engine, model, via }
}

/// Arguments after the program's name. In names of flags `_` is `-`, as vLLM and SGLang have it.
struct Flags<'a>(&'a [&'a str]);

impl<'a> Flags<'a> {
    /// The value of the last of these flags, as `--flag=value` or `--flag value`.
    fn value(&self, names: &[&str]) -> Option<&'a str> {
        self.values(names).last()
    }

    fn values(&self, names: &[&str]) -> impl Iterator<Item = &'a str> {
        self.0.iter().enumerate().filter_map(move |(i, argument)| {
            let (name, joined) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (*argument, None),
            };
            if !names.iter().any(|wanted| is_flag(name, wanted)) {
                return None;
            }
            joined.or_else(|| self.0.get(i + 1).copied().filter(|v| !v.starts_with('-')))
        })
    }

    /// What stands first, without a flag: the model, in both `serve` commands, whatever `--model` says.
    fn positional(&self) -> Option<&'a str> {
        let first = self.0.first()?;
        (!first.is_empty() && !first.starts_with('-')).then_some(first)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| is_flag(argument, name))
    }

    /// The last valid port of these flags, or `default`.
    fn ports(&self, names: &[&str], default: &[u16]) -> Vec<u16> {
        match self.values(names).filter_map(port).last() {
            Some(port) => vec![port],
            None => default.to_vec(),
        }
    }
}

fn is_flag(said: &str, name: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    said.len() == name.len() && said.bytes().zip(name.bytes()).all(same)
}

fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of a shell line without quotes; leading `NAME=value` are its environment.
    fn line(text: &str) -> Option<ServingCommand> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_variable = |w: &&&str| {
            w.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            })
        };
        let variables: Vec<&str> = words.iter().take_while(is_variable).copied().collect();
        classify(&words[variables.len()..], &|name| {
            let found = variables
                .iter()
                .find_map(|v| v.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned)
        })
    }

    fn shown(text: &str) -> String {
        let Some(found) = line(text) else {
            return "none".to_owned();
        };
        let via = match found.via {
            Via::Http { ports } => format!("{ports:?}"),
            other => format!("{other:?}"),
        };
        format!(
            "{} {} {via}",
            found.engine,
            found.model.as_deref().unwrap_or("-")
        )
    }

    /// Each case of the file is a line as the engines' documentation and images have it, and below it, indented, what it is.
    #[test]
    fn command_lines_of_the_engines_documentation_are_known_for_what_they_are() {
        let cases = include_str!("../../testdata/engines.txt");
        let mut seen = 0;
        let mut lines = cases
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        while let (Some(command), Some(expected)) = (lines.next(), lines.next()) {
            assert!(
                !command.starts_with(' ') && expected.starts_with("    "),
                "{command}"
            );
            assert_eq!(shown(command), expected.trim(), "{command}");
            seen += 1;
        }
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn hostile_command_lines_are_harmless() {
        assert_eq!(classify(&[""; 0], &|_| None), None);
        assert_eq!(classify(&["", "", ""], &|_| None), None);
        let endless = vec!["python3"; 100_000];
        assert_eq!(classify(&endless, &|_| None), None);
        // A port that is no port is not taken for another one.
        for port in [
            "0",
            "65536",
            "-1",
            "+80",
            "1e3",
            "",
            "99999999999999999999",
            "８０",
        ] {
            let found = classify(&["vllm", "serve", "m", "--port", port], &|_| None).unwrap();
            assert_eq!(found.via, Via::Http { ports: vec![8000] }, "{port}");
        }
        let long = "m".repeat(1 << 20);
        for model in [long.as_str(), "a\nb", "\u{1b}[31m", "  "] {
            let found = classify(&["vllm", "serve", model], &|_| None).unwrap();
            assert_eq!(found.model, None);
        }
    }
}
