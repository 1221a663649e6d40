//! nats-servers of the tests' own: each with its port and its store, gone when the test ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};

/// Time for a nats-server to start or stop; it takes milliseconds, but machines can be busy.
const PROCESS_TIME_MAX: Duration = Duration::from_secs(60);

/// The oldest version that the product works with.
pub const VERSION_MIN: &str = "2.14.4";

/// The nats-server to test with, if there is one: `$NATS_SERVER`, else the one on the PATH.
/// `./test` installs one and sets the variable, so that nothing is left out there.
pub fn binary() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(find).as_deref()
}

/// The oldest nats-server that the product works with, where `./test` has installed it.
pub fn oldest_binary() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = PathBuf::from(std::env::var_os("NATS_SERVER_OLDEST")?);
        assert_eq!(version(&path).as_deref(), Some(VERSION_MIN), "{}", path.display());
        Some(path)
    };
    FOUND.get_or_init(find).as_deref()
}

#[allow(clippy::print_stderr)]
fn find() -> Option<PathBuf> {
    let found = match std::env::var_os("NATS_SERVER") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(version(&path).is_some(), "NATS_SERVER={} does not run", path.display());
            Some(path)
        }
        None => Some(PathBuf::from("nats-server")).filter(|path| new_enough(path)),
    };
    if found.is_none() {
        eprintln!(
            "no nats-server of {VERSION_MIN} or newer in $NATS_SERVER or on the PATH: its tests are left out; ./test installs one"
        );
    }
    found
}

fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.rsplit_once('v')?.1.trim().to_owned())
}

fn new_enough(binary: &Path) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    version(binary).is_some_and(|found| numbers(&found) >= numbers(VERSION_MIN))
}

/// A port that nobody uses. It is below those that the system gives out by itself, so that it is
/// still free when a server that was killed starts again.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(fastrand::u16(..COUNT)));
    loop {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One nats-server.
pub struct NatsServer {
    binary: PathBuf,
    child: Option<Child>,
    pub port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    /// A small disk of its own, if it has one.
    disk: Option<SmallDisk>,
}

/// A file system in memory of a few megabytes, in a mount namespace that a process of its own keeps.
pub struct SmallDisk {
    keeper: Child,
}

impl SmallDisk {
    /// Mounts one there, or says that this machine does not allow it.
    fn mount(at: &Path, megabytes: usize) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={megabytes}m tmpfs {} && echo ready && exec sleep 100000",
            at.display()
        );
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &mount]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() == "ready" {
            return Some(Self { keeper });
        }
        keeper.wait().unwrap();
        None
    }

    /// A command that sees it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-U", "-m", "--preserve-credentials"]);
        command.arg(program);
        command
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // After a failed test there is nobody to tell.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

impl NatsServer {
    /// Starts one with JetStream, or says that there is none.
    pub fn start() -> Option<Self> {
        Some(Self::with(binary()?, &["-js"]))
    }

    /// Starts one with other arguments.
    pub fn with(binary: &Path, arguments: &[&str]) -> Self {
        let mut server = Self {
            binary: binary.to_owned(),
            child: None,
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            disk: None,
        };
        server.run();
        server
    }

    /// Starts one whose store is on a disk of so many megabytes, where this machine allows that.
    #[allow(clippy::print_stderr)]
    pub fn on_small_disk(binary: &Path, megabytes: usize) -> Option<Self> {
        let mut server = Self::stopped(binary, &["-js"]);
        // It may store more than there is room for.
        let config = server.folder.path().join("nats.conf");
        std::fs::write(&config, "jetstream { max_file_store: 1GB }").unwrap();
        server.arguments.extend(["-c".to_owned(), config.to_str().unwrap().to_owned()]);
        server.disk = SmallDisk::mount(&server.folder.path().join("store"), megabytes);
        if server.disk.is_none() {
            eprintln!("no file system can be mounted here: tests of a full disk are left out");
            return None;
        }
        server.run();
        Some(server)
    }

    /// Makes its disk larger or smaller.
    pub fn resize_disk(&self, megabytes: usize) {
        let disk = self.disk.as_ref().expect("it has a small disk");
        let size = format!("remount,size={megabytes}m");
        let mut command = disk.command(Path::new("mount"));
        command.args(["-o", &size]).arg(self.folder.path().join("store"));
        assert!(command.status().unwrap().success());
    }

    /// Starts one on a copy of the files of a server that is stopped.
    pub fn on_copy_of(other: &Self) -> Self {
        Self::on_copy_with(other, &[])
    }

    /// The same with further arguments.
    pub fn on_copy_with(other: &Self, more: &[&str]) -> Self {
        assert!(other.child.is_none(), "its files may change");
        let arguments = other.arguments.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.chain(more.iter().copied()).collect();
        let mut server = Self::stopped(&other.binary, &arguments);
        copy(other.folder.path(), server.folder.path());
        server.run();
        server
    }

    /// One that is not started yet.
    pub fn stopped(binary: &Path, arguments: &[&str]) -> Self {
        Self {
            binary: binary.to_owned(),
            child: None,
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            disk: None,
        }
    }

    /// Starts it, again on the same port and store, and waits until it is ready.
    pub fn run(&mut self) {
        let arguments = self.arguments.clone();
        self.run_with(&arguments);
    }

    /// The same without one of its arguments.
    pub fn run_without(&mut self, argument: &str) {
        let arguments = self.arguments.iter().filter(|there| *there != argument);
        let arguments: Vec<_> = arguments.cloned().collect();
        self.run_with(&arguments);
    }

    /// The same where it may end at once, as on a full disk. Gives what it said then.
    pub fn try_run(&mut self) -> Result<(), String> {
        let arguments = self.arguments.clone();
        self.try_run_with(&arguments)
    }

    fn run_with(&mut self, arguments: &[String]) {
        if let Err(log) = self.try_run_with(arguments) {
            panic!("nats-server ended:\n{log}");
        }
    }

    fn try_run_with(&mut self, arguments: &[String]) -> Result<(), String> {
        let mut command = match &self.disk {
            Some(disk) => disk.command(&self.binary),
            None => Command::new(&self.binary),
        };
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        command.arg("-sd").arg(self.folder.path().join("store")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        loop {
            let Some(line) = lines.next() else {
                child.wait().unwrap();
                return Err(log);
            };
            let line = line.unwrap();
            log += &line;
            log.push('\n');
            if line.ends_with("Server is ready") {
                break;
            }
        }
        // Somebody must read on, or it would stop once the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        self.child = Some(child);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Has it read its configuration again.
    pub fn reload(&self) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    /// A copy of its files, while it is stopped.
    pub fn copy_of_files(&self) -> tempfile::TempDir {
        assert!(self.child.is_none(), "its files may change");
        let backup = tempfile::tempdir().unwrap();
        copy(self.folder.path(), backup.path());
        backup
    }

    /// Puts such a copy in place of its files.
    pub fn put_back(&self, backup: &tempfile::TempDir) {
        assert!(self.child.is_none(), "its files may change");
        std::fs::remove_dir_all(self.folder.path().join("store")).unwrap();
        copy(backup.path(), self.folder.path());
    }

    /// Where it keeps the messages of the stream.
    pub fn stream_folder(&self) -> PathBuf {
        let stream = "store/jetstream/$G/streams/CIRCUIT_BREAKER_GLOBAL/msgs";
        self.folder.path().join(stream)
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn config(&self) -> NATSStorageConfig {
        NATSStorageConfig { nats_urls: vec![self.url()], ..NATSStorageConfig::default() }
    }

    pub async fn open(&self) -> NATSStorage {
        NATSStorage::new(self.config()).await.unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) =
            entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).unwrap();
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended; and after a failed test there is nobody to tell.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A nats-server with a configuration of its own.
pub fn configured(text: &str) -> Option<(NatsServer, tempfile::TempDir)> {
    let binary = binary()?;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nats.conf");
    std::fs::write(&path, text).unwrap();
    Some((NatsServer::with(binary, &["-js", "-c", path.to_str().unwrap()]), folder))
}

/// Three nats-servers that form one cluster.
pub struct Cluster {
    pub nodes: Vec<NatsServer>,
}

impl Cluster {
    pub fn start() -> Option<Self> {
        Self::start_some(3)
    }

    /// So many of them run; the others have never been there.
    pub fn start_some(running: usize) -> Option<Self> {
        let binary = binary()?;
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        // To the others alone: with one to itself a node waits for a fourth.
        let to_others = |n: usize| {
            let others = routes.iter().enumerate().filter(|(other, _)| *other != n);
            let others: Vec<_> =
                others.map(|(_, port)| format!("nats://127.0.0.1:{port}")).collect();
            others.join(",")
        };
        let nodes = (0..3).map(|n| {
            let listen = format!("nats://127.0.0.1:{}", routes[n]);
            let name = format!("n{n}");
            NatsServer::stopped(
                binary,
                &[
                    "-js",
                    "-n",
                    &name,
                    "--cluster_name",
                    "test",
                    "--cluster",
                    &listen,
                    "--routes",
                    &to_others(n),
                ],
            )
        });
        let mut cluster = Self { nodes: nodes.collect() };
        // "Server is ready" comes before the cluster has formed, so one after the other is fine.
        cluster.nodes.iter_mut().take(running).for_each(NatsServer::run);
        Some(cluster)
    }

    /// All servers, with `first` as the one to connect to.
    pub fn config(&self, first: usize) -> NATSStorageConfig {
        let mut urls: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        urls.swap(0, first);
        NATSStorageConfig {
            nats_urls: urls,
            connection_timeout: PROCESS_TIME_MAX,
            ..NATSStorageConfig::default()
        }
    }

    /// A store with three replicas.
    pub async fn open(&self, first: usize) -> NATSStorage {
        let options = NATSStorageOptions { replicas: 3, ..NATSStorageOptions::new() };
        NATSStorage::with_options(self.config(first), options).await.unwrap()
    }
}
