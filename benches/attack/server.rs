//! The server that is attacked, and what Linux tells of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    pub fn start(path: &Path) -> Self {
        let binary = std::env::var_os("ATTACK_SERVER");
        let mut child = Command::new(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_server").into()))
            .env_clear()
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("SQLITE_PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("the log is text");
            let rest = line.split("listening on http://").nth(1)?;
            rest.split(',').next().map(str::to_owned)
        });
        // The pipe must not fill up; a defect is to be seen.
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter(|line| line.contains("ERROR"))
                .for_each(|line| println!("{line}"));
        });
        Self { child, address: address.expect("it says where it listens") }
    }

    /// From here on the peak is that of what follows.
    pub fn forget_peak(&self) {
        let path = format!("/proc/{}/clear_refs", self.child.id());
        std::fs::write(path, "5").expect("Linux lets the owner do so");
    }

    /// The most memory that it has had, in bytes.
    pub fn peak(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.expect("it is a number") * 1_024.0
    }

    /// Processor time that it has taken, in microseconds.
    pub fn processor_time(&self) -> f64 {
        /// Of one tick of what Linux tells, on every machine of today.
        const TICK: f64 = 1e4;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("it runs");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<f64>().expect("it is a number")).sum::<f64>() * TICK
    }

    /// Asks it to end. Gives how long that took.
    pub fn end(mut self) -> Duration {
        let began = Instant::now();
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("there is a kill");
        while self.child.try_wait().expect("it is ours").is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        began.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
