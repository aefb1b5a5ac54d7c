//! A network that drops every packet to and from a port of the loopback, without a word.

use std::process::Command;

/// The rules are in force until this is dropped, also by a panic.
pub struct BlackHole {
    port: String,
    added: Vec<&'static str>,
}

impl BlackHole {
    /// Needs to be root: without it the test fails, it does not pass.
    #[track_caller]
    pub fn at(port: u16) -> Self {
        let mut hole = Self {
            port: port.to_string(),
            added: Vec::new(),
        };
        for side in ["--dport", "--sport"] {
            let why = hole.rule("-I", side).err();
            assert!(
                why.is_none(),
                "this test needs a firewall: the iptables command (apt-get install iptables), and to be root: {}",
                why.unwrap_or_default()
            );
            hole.added.push(side);
        }
        hole
    }

    fn rule(&self, action: &str, side: &str) -> Result<(), String> {
        let ran = Command::new("iptables")
            .args([
                "-w", action, "INPUT", "-i", "lo", "-p", "tcp", side, &self.port,
            ])
            .args(["-j", "DROP"])
            .output()
            .map_err(|error| error.to_string())?;
        match ran.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
        }
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        for side in &self.added {
            if let Err(why) = self.rule("-D", side) {
                eprintln!(
                    "a rule of the firewall stays, remove it by hand: {side} {}: {why}",
                    self.port
                );
            }
        }
    }
}
