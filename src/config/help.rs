//! The default configuration as `hpml config` prints it: each key below its doc comment, values from `Default`.

use documented::DocumentedFields;

use super::*;

/// Doc comment of the key `key` of `section`; `None` if there is no such key.
///
/// `documented` brings only the comments: `toml-example` would print an enum by its `Debug` form, which serde does not read.
fn key_help(section: &str, key: &str) -> Option<&'static str> {
    match section {
        "run" => Run::get_field_docs(key),
        "launch" => Launch::get_field_docs(key),
        "data" => Data::get_field_docs(key),
        "model" => Model::get_field_docs(key),
        "train" => Train::get_field_docs(key),
        "optim" => Optim::get_field_docs(key),
        "schedule" => Schedule::get_field_docs(key),
        "parallel" => Parallel::get_field_docs(key),
        "checkpoint" => Checkpoint::get_field_docs(key),
        "metrics" => Metrics::get_field_docs(key),
        "quantize" => Quantize::get_field_docs(key),
        "sweep" => Sweep::get_field_docs(key),
        "study" => Study::get_field_docs(key),
        _ => return None,
    }
    .ok()
}

/// Appends `text` as comment lines.
fn push_comment(out: &mut String, text: Option<&str>) {
    for line in text.unwrap_or_default().lines() {
        out.push_str(&format!("# {line}\n"));
    }
}

/// The default configuration as TOML with a comment above each key. Feeding it back gives the defaults.
///
/// ```
/// let text = hpml::config::documented_defaults();
/// assert!(text.contains("# Passes over the training samples; at least 1.\nepochs = 2\n"));
/// ```
pub fn documented_defaults() -> String {
    let mut text = String::from(
        "# hpml: the default configuration. Save it, edit it, and run: mpirun -n 4 hpml train FILE.toml\n\
         # Any key can also be given as --set section.key=value.\n",
    );
    let defaults = Config::default().to_toml();
    let mut section = "";
    for line in defaults.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            text.push('\n');
            push_comment(&mut text, Config::get_field_docs(section).ok());
            text.push_str(&format!("[{section}]\n"));
        } else if let Some((key, _)) = line.split_once(" = ") {
            push_comment(&mut text, key_help(section, key));
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_and_every_key_has_its_comment_above_it() {
        let printed = documented_defaults();
        for (name, _) in Config::default().flattened() {
            let (section, key) = name.split_once('.').unwrap();
            let help = key_help(section, key).unwrap_or_else(|| panic!("{name} has no comment"));
            let comment = format!("# {}\n{key} = ", help.replace('\n', "\n# "));
            assert_eq!(printed.matches(&comment).count(), 1, "{name}: {comment}");
            let help = Config::get_field_docs(section).unwrap().replace('\n', "\n# ");
            assert!(printed.contains(&format!("\n\n# {help}\n[{section}]\n")), "{section}: {help}");
        }
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let config: Config = toml::from_str(&documented_defaults()).unwrap();
        assert_eq!(config, Config::default());
    }
}
