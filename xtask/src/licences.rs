//! What may come in with the dependencies: the licence check of `cargo deny`, on the same `deny.toml`, for machines
//! that have no `cargo deny`. Needs no network beyond what the build needs.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::packages::cargo;

/// The platform whose crates are looked at: what is built and shipped.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Checks that every crate in the build may be linked under the licences that `deny.toml` allows, and comes from
/// crates.io or this workspace.
pub(crate) fn check() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let allowed = allowed(&std::fs::read_to_string(root.join("deny.toml")).context("read deny.toml")?)?;
    let out = cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", PLATFORM])
        .current_dir(&root)
        .output()
        .context("run cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).context("read what cargo metadata says")?;
    let reached = metadata["resolve"]["nodes"].as_array().context("no dependency graph")?;
    let reached: Vec<&str> = reached.iter().filter_map(|n| n["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    let refused: Vec<String> = packages
        .iter()
        .filter(|p| p["id"].as_str().is_some_and(|id| reached.contains(&id)))
        .filter_map(|p| refusal(p, &allowed))
        .collect();
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

/// The licences between the brackets of `allow = [...]` in `[licenses]`.
fn allowed(deny: &str) -> Result<Vec<String>> {
    let section = deny.split("[licenses]").nth(1).context("deny.toml has no [licenses]")?;
    let list = section.split("allow = [").nth(1).and_then(|s| s.split(']').next()).context("no `allow` in it")?;
    let names: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    if names.is_empty() {
        bail!("deny.toml allows no licence");
    }
    Ok(names)
}

/// Why `package` may not come in.
fn refusal(package: &Value, allowed: &[String]) -> Option<String> {
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    match package["source"].as_str() {
        None | Some("registry+https://github.com/rust-lang/crates.io-index") => {}
        Some(other) => return Some(format!("{name} comes from {other}: only crates.io is allowed")),
    }
    let Some(licence) = package["license"].as_str() else { return Some(format!("{name} names no licence")) };
    let Ok(expression) = Expression::parse_mode(licence, ParseMode::LAX) else {
        return Some(format!("{name}: its licence \"{licence}\" is no SPDX expression"));
    };
    let fits = expression.evaluate(|r| r.license.id().is_some_and(|id| allowed.iter().any(|a| a == id.name)));
    (!fits).then(|| format!("{name}: its licence \"{licence}\" is not among those that deny.toml allows"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_licence_is_allowed_by_any_of_its_alternatives_and_needs_all_of_its_parts() {
        let allowed = allowed("[licenses]\nallow = [\n  \"MIT\",\n  \"ISC\", # why\n]\n").expect("list");
        assert_eq!(allowed, ["MIT", "ISC"]);
        let package = |licence: &str| json!({ "name": "x", "version": "1.0.0", "source": null, "license": licence });
        for fine in ["MIT", "MIT OR GPL-3.0-only", "GPL-3.0-only/ISC", "MIT AND ISC"] {
            assert_eq!(refusal(&package(fine), &allowed), None, "{fine}");
        }
        for wrong in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "whatever"] {
            assert!(refusal(&package(wrong), &allowed).is_some(), "{wrong}");
        }
        let git = json!({ "name": "x", "version": "1.0.0", "source": "git+https://example.org/x", "license": "MIT" });
        assert!(refusal(&git, &allowed).is_some());
    }
}
