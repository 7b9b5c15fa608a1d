//! A certificate authority of our own, made by `openssl`, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{run, state_dir};

/// Far longer than any test: the machines that run them have odd clocks.
const DAYS: &str = "3650";
const CONFIG: &str = "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = ipop-fast test authority\n\
    [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n\
    subjectKeyIdentifier = hash\n";

/// A private authority. Its files are removed with it.
#[derive(Debug)]
pub struct Ca {
    dir: PathBuf,
    /// Certificates of other authorities, PEM.
    others: String,
}

impl Ca {
    /// Makes a key (P-256) and its self-signed certificate.
    ///
    /// # Errors
    /// When `openssl` is missing or says no.
    pub fn new() -> Result<Self> {
        let ca = Self { dir: scratch("ca")?, others: String::new() };
        std::fs::write(ca.dir.join("ca.cnf"), CONFIG)?;
        run(openssl(&ca.dir)
            .args(["req", "-x509", "-config", "ca.cnf", "-extensions", "ca", "-days", DAYS])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key"])
            .args(["-out", "ca.pem"]))?;
        Ok(ca)
    }

    /// The authority's certificate: what a client trusts.
    #[must_use]
    pub fn pem(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Has servers that it signs for from now on trust another authority, too.
    ///
    /// # Errors
    /// When that one's certificate cannot be read.
    pub fn trusting(mut self, other: &Self) -> Result<Self> {
        self.others.push_str(&std::fs::read_to_string(other.pem())?);
        Ok(self)
    }

    /// Signs a certificate for a server, also for when it calls another one, for `names` and writes it, with the authority's behind it, as `cert.pem` and its key as
    /// `key.pem` into `dir`, and what it is to trust as `ca.pem`.
    ///
    /// # Errors
    /// When `openssl` says no.
    pub fn certify(&self, names: &[String], dir: &Path) -> Result<()> {
        let alternatives: Vec<String> = names.iter().map(|n| format!("DNS:{n}")).collect();
        let config = format!(
            "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = server\n[server]\n\
             basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
             extendedKeyUsage = serverAuth, clientAuth\nsubjectAltName = {}\n",
            alternatives.join(", ")
        );
        std::fs::write(self.dir.join("server.cnf"), config)?;
        run(openssl(&self.dir)
            .args(["req", "-x509", "-config", "server.cnf", "-extensions", "server", "-days", DAYS])
            .args(["-CA", "ca.pem", "-CAkey", "ca.key"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem"])
            .args(["-out", "leaf.pem"]))?;
        let chain = [std::fs::read(self.dir.join("leaf.pem"))?, std::fs::read(self.pem())?].concat();
        std::fs::write(dir.join("cert.pem"), chain)?;
        std::fs::copy(self.dir.join("key.pem"), dir.join("key.pem"))?;
        std::fs::write(dir.join("ca.pem"), std::fs::read_to_string(self.pem())? + &self.others)?;
        Ok(())
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn openssl(dir: &Path) -> Command {
    let mut c = Command::new("openssl");
    c.current_dir(dir);
    c
}

/// A new directory below the harness's own, named after this process so that a later run sweeps it up.
pub(super) fn scratch(name: &str) -> Result<PathBuf> {
    let dir = state_dir()?.join(format!("{}-{}-{name}", std::process::id(), crate::process::serial()));
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_certificate_verifies_against_its_authority_and_no_other() {
        let (ours, other) = (Ca::new().unwrap(), Ca::new().unwrap());
        let dir = scratch("cert").unwrap();
        ours.certify(&["xmpp.test".into()], &dir).unwrap();
        let verify = |ca: &Ca| {
            run(Command::new("openssl")
                .args(["verify", "-verify_hostname", "xmpp.test", "-CAfile"])
                .arg(ca.pem())
                .arg(dir.join("cert.pem")))
        };
        assert!(verify(&ours).is_ok() && verify(&other).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
