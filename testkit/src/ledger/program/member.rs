//! A member of the crew: one worker process at a time, and the nemeses that strike it.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::super::journal::{Exit, Fact, Journal};
use super::super::nemesis::Nemesis;
use super::schedule::Strike;
use super::{REST, RESTED};

/// Timeout of an orderly stop: longer than the drain timeout and what follows it.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
const HOUR: &str = "3600";

/// What all workers of a round share.
pub(super) struct Crew {
    /// Arguments of each worker, without its name and life.
    pub(super) arguments: Vec<String>,
    /// Folder of the journals.
    pub(super) journals: PathBuf,
    /// Library that sets the clock of a worker, if that is a nemesis of this run.
    pub(super) faketime: Option<PathBuf>,
    /// Journal of the driver.
    pub(super) journal: Arc<Journal>,
}

pub(super) struct Member {
    crew: Arc<Crew>,
    name: String,
    life: u32,
    running: Running,
}

/// A worker process.
struct Running {
    child: Child,
    /// The worker stops when this is dropped.
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    /// Sends a signal, unless the process has ended.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // An error means that it has just ended, which whoever waits for it will learn.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Member {
    pub(super) fn start(crew: Arc<Crew>, name: String) -> io::Result<Self> {
        let running = crew.start(&name, 1)?;
        Ok(Self { crew, name, life: 1, running })
    }

    /// Strikes this member as planned. A process that ends is followed by the next one.
    pub(super) async fn strike_all(mut self, strikes: Vec<Strike>, begin: Instant) -> io::Result<Self> {
        for strike in strikes {
            self.wait_until(begin + strike.at).await?;
            let (nemesis, target) = (strike.nemesis, Some(self.name.clone()));
            self.crew.journal.note(Fact::NemesisBegun { nemesis, target: target.clone() });
            self.strike(strike).await?;
            self.crew.journal.note(Fact::NemesisEnded { nemesis, target });
        }
        Ok(self)
    }

    async fn wait_until(&mut self, time: Instant) -> io::Result<()> {
        while let Ok(ended) = tokio::time::timeout_at(time, self.running.child.wait()).await {
            self.next_life(Exit::ByItself, ended?.to_string())?;
        }
        Ok(())
    }

    async fn strike(&mut self, strike: Strike) -> io::Result<()> {
        let lasts = strike.lasts;
        match strike.nemesis {
            Nemesis::Kill => {
                // An error means that it has ended already.
                let _ = self.running.child.start_kill();
                let status = self.running.child.wait().await?;
                self.note_exit(Exit::Killed, status.to_string());
                tokio::time::sleep(lasts).await;
                self.begin_life()
            }
            Nemesis::Term => {
                let (cause, status) = self.terminate().await?;
                self.next_life(cause, status)
            }
            Nemesis::Pause => {
                self.running.signal(Signal::STOP);
                tokio::time::sleep(lasts).await;
                self.running.signal(Signal::CONT);
                Ok(())
            }
            Nemesis::EioWrite => self.inject("pwrite64", strike).await,
            Nemesis::EioSync => self.inject("fsync,fdatasync", strike).await,
            Nemesis::ClockForward => self.jump("+", lasts).await,
            Nemesis::ClockBack => self.jump("-", lasts).await,
            other => Err(io::Error::other(format!("{other} does not strike a worker"))),
        }
    }

    /// Lets one of these system calls of each thread fail.
    async fn inject(&mut self, calls: &str, strike: Strike) -> io::Result<()> {
        let Some(pid) = self.running.child.id() else { return Ok(()) };
        let inject = format!("inject={calls}:error=EIO:when={}", strike.number);
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        // It ends by itself if the worker does.
        if tokio::time::timeout(strike.lasts, strace.wait()).await.is_err() {
            let pid = strace.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            // At this signal it lets the worker go.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
            strace.wait().await?;
        }
        Ok(())
    }

    /// Sets the clock of the worker for a while.
    async fn jump(&mut self, direction: &str, lasts: Duration) -> io::Result<()> {
        let clock = self.crew.clock(&self.name);
        set_clock(&clock, &format!("{direction}{HOUR}"))?;
        tokio::time::sleep(lasts).await;
        set_clock(&clock, "+0")
    }

    /// Asks the publishers to end, and waits until they have.
    pub(super) async fn rest(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            // An error means that it has ended, which the next lines learn.
            let _ = self.running.commands.write_all(format!("{REST}\n").as_bytes()).await;
            let answer = tokio::time::timeout_at(deadline, self.running.answers.next_line()).await;
            match answer {
                Ok(Ok(Some(line))) if line == RESTED => return Ok(()),
                Ok(Ok(Some(_))) => {}
                // The checker finds what has not ended in time.
                Err(_) => return Ok(()),
                Ok(Ok(None) | Err(_)) => {
                    let status = self.running.child.wait().await?;
                    self.next_life(Exit::ByItself, status.to_string())?;
                }
            }
        }
    }

    /// Stops the last process in order.
    pub(super) async fn stop(mut self) -> io::Result<()> {
        let (cause, status) = self.terminate().await?;
        self.note_exit(cause, status);
        Ok(())
    }

    async fn terminate(&mut self) -> io::Result<(Exit, String)> {
        self.running.signal(Signal::TERM);
        if let Ok(ended) = tokio::time::timeout(STOP_TIMEOUT, self.running.child.wait()).await {
            return Ok((Exit::Stopped, ended?.to_string()));
        }
        self.running.child.kill().await?;
        Ok((Exit::ByItself, format!("no end within {STOP_TIMEOUT:?} after SIGTERM")))
    }

    fn note_exit(&self, cause: Exit, status: String) {
        let (member, life) = (self.name.clone(), self.life);
        self.crew.journal.note(Fact::Exited { member, life, cause, status });
    }

    fn next_life(&mut self, cause: Exit, status: String) -> io::Result<()> {
        self.note_exit(cause, status);
        self.begin_life()
    }

    fn begin_life(&mut self) -> io::Result<()> {
        self.life += 1;
        self.running = self.crew.start(&self.name, self.life)?;
        Ok(())
    }
}

impl Crew {
    fn clock(&self, member: &str) -> PathBuf {
        self.journals.join(format!("{member}.clock"))
    }

    fn start(&self, member: &str, life: u32) -> io::Result<Running> {
        let log = self.journals.join(format!("{member}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&self.arguments)
            .args(["--member", member, "--life", &life.to_string(), "--supervised"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        if let Some(library) = &self.faketime {
            let clock = self.clock(member);
            set_clock(&clock, "+0")?;
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                // Read at every call, so that a jump is not delayed. Only the wall clock jumps.
                .envs([
                    ("FAKETIME_NO_CACHE", "1"),
                    ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                    ("NO_FAKE_STAT", "1"),
                ]);
        }
        let mut child = command.spawn()?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a worker has no input or output"));
        };
        Ok(Running { child, commands, answers: BufReader::new(answers).lines() })
    }
}

/// Replaces the file at once: the worker reads it at any time.
fn set_clock(clock: &Path, offset: &str) -> io::Result<()> {
    let next = clock.with_extension("next");
    fs::write(&next, offset)?;
    fs::rename(next, clock)
}

/// Finds the library that sets the clock of a process.
pub(super) fn find_faketime() -> Option<PathBuf> {
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = multiarch.chain(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.is_file())
}

/// Says why strace cannot attach to a worker.
pub(super) fn strace_is_missing() -> Option<&'static str> {
    let works = std::process::Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "trace=none", "true"])
        .output()
        .is_ok_and(|done| done.status.success());
    if !works {
        return Some("install strace");
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let may_attach = rustix::process::geteuid().is_root() || matches!(scope.trim(), "" | "0");
    (!may_attach).then_some("strace may not attach: run as root, or set kernel.yama.ptrace_scope to 0")
}
