//! `warptrace config`: is a file of settings right, which keys are there.

use super::layers::of_file;
use super::reference::{effective, example, json, schema};
use super::tree::Node as _;
use crate::args::ConfigCommand;
use crate::output;

/// 1 where the file cannot be used.
pub(crate) fn run(command: &ConfigCommand) -> anyhow::Result<u8> {
    match command {
        ConfigCommand::Check {
            file,
            output: as_json,
        } => {
            let loaded = match of_file(file) {
                Ok(loaded) => loaded,
                Err(wrong) => {
                    eprintln!("warptrace: {wrong:#}");
                    return Ok(1);
                }
            };
            match as_json.json {
                true => {
                    let origins = loaded.origins().iter().map(|(k, v)| (k, v.name()));
                    let origins: std::collections::BTreeMap<_, _> = origins.collect();
                    let settings = json(&loaded.show());
                    output::print_json(&serde_json::json!({
                        "schema": "warptrace.config/v1", "settings": settings, "origins": origins,
                    }))?;
                }
                false => output::print(&effective(&loaded))?,
            }
        }
        ConfigCommand::Schema => {
            output::print(&format!("{:#}\n", schema()))?;
        }
        ConfigCommand::Example => output::print(&example())?,
    }
    Ok(0)
}
