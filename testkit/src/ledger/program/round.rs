//! The driver: rounds of workers, nemeses and checks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use a3s_event::provider::ProviderRegistry;
use a3s_event::{Capabilities, Event, EventProvider};
use clap::ValueEnum;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::finale::positions;
use super::super::journal::{Fact, Journal, Lines, Terms};
use super::super::nemesis::Nemesis;
use super::super::{Figures, Finale, Verdict, check, summary};
use super::backend::Server;
use super::disk::Disk;
use super::member::{Crew, Member, find_faketime, strace_is_missing};
use super::schedule::{Strike, schedule};
use super::{Failure, Place, Run, missing};

/// Pause between two looks at the consumers while they catch up.
const POLL: Duration = Duration::from_millis(50);
/// Verdicts of a kind that are shown; the journals have all.
const SHOWN: usize = 3;
/// Deduplication window where a provider does not declare one.
const DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// Health must notice an outage within this time.
const HEALTH: Duration = Duration::from_secs(15);

/// The driver of all rounds.
struct Driver {
    registry: ProviderRegistry,
    args: Run,
    seed: u64,
    url: String,
    server: Option<Box<dyn Server>>,
    /// Nemeses to draw from.
    nemeses: Vec<Nemesis>,
    faketime: Option<PathBuf>,
    capabilities: Capabilities,
    folder: PathBuf,
}

/// Runs all rounds. Returns true if none has a verdict.
#[allow(clippy::print_stdout, reason = "the result of a program")]
pub(super) async fn run(registry: ProviderRegistry, args: Run) -> Result<bool, Failure> {
    let seed = args.load.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    let (folder, is_temporary) = match &args.folder {
        Some(folder) => (folder.clone(), false),
        // Removed only if it holds no evidence.
        None => (tempfile::Builder::new().prefix("a3s-event-ledger-").tempdir()?.keep(), true),
    };
    fs::create_dir_all(&folder)?;
    let (rounds, keeps) = (args.rounds, args.keep);
    let started = Driver::start(registry, args, seed, folder.clone()).await;
    if is_temporary && started.is_err() {
        fs::remove_dir_all(&folder)?;
    }
    let mut driver = started?;
    let (mut sum, mut all, mut failed) = (Figures::default(), Vec::new(), 0);
    for round in 1..=rounds {
        let begin = Instant::now();
        let done = driver.round(round).await;
        let (figures, verdicts) =
            done.map_err(|error| format!("{error}; journals: {}", driver.journals(round).display()))?;
        sum.add(&figures);
        println!(
            "round {round} of {rounds} (seed {}, {} s): {figures}: {}",
            driver.seed_of(round),
            begin.elapsed().as_secs(),
            summary(&verdicts)
        );
        show(&verdicts);
        if !verdicts.is_empty() {
            failed += 1;
            println!("journals: {}", driver.journals(round).display());
        }
        all.extend(verdicts);
    }
    println!("all {rounds} rounds: {sum}: {}", summary(&all));
    if is_temporary && failed == 0 && !keeps {
        fs::remove_dir_all(&folder)?;
    }
    Ok(failed == 0)
}

/// Shows the first verdicts of each kind.
#[allow(clippy::print_stdout, reason = "the result of a program")]
fn show(verdicts: &[Verdict]) {
    let mut shown = BTreeMap::new();
    for verdict in verdicts {
        let count = shown.entry(verdict.kind).or_insert(0);
        *count += 1;
        if *count <= SHOWN {
            println!("  {verdict}");
        }
    }
}

impl Driver {
    #[allow(clippy::print_stdout, reason = "the settings of the run")]
    async fn start(
        registry: ProviderRegistry,
        args: Run,
        seed: u64,
        folder: PathBuf,
    ) -> Result<Self, Failure> {
        let server = match args.server {
            Some(kind) => Some(kind.start(seed).await),
            None => None,
        };
        let url = server.as_ref().map(|server| server.url()).or_else(|| args.url.clone()).unwrap_or_default();
        let mut driver = Self {
            registry,
            seed,
            url,
            server,
            nemeses: Vec::new(),
            faketime: find_faketime(),
            capabilities: Capabilities::unknown(),
            folder,
            args,
        };
        let has_files = driver.probe().await?;
        let left_out = driver.choose(has_files)?;
        let names: Vec<_> = driver.nemeses.iter().map(ToString::to_string).collect();
        println!("seed {seed}, {} workers, nemeses: {}", driver.args.workers, names.join(", "));
        if !left_out.is_empty() {
            println!("left out: {}", left_out.join("; "));
        }
        Ok(driver)
    }

    /// Opens a stream for a moment. Returns true if it consists of files on this machine.
    async fn probe(&mut self) -> Result<bool, Failure> {
        let files = self.folder.join("probe");
        fs::create_dir_all(&files)?;
        let place = self.place(stream_name(), &files);
        let (provider, letters) = place.connect().await?;
        self.capabilities = provider.capabilities();
        let has_files = fs::read_dir(&files)?.next().is_some();
        forget(&*provider, &*letters).await;
        fs::remove_dir_all(&files)?;
        match missing(&self.capabilities) {
            Some(what) => Err(format!("the ledger needs {what}, which this bus has not").into()),
            None => Ok(has_files),
        }
    }

    /// Chooses the nemeses that apply, and returns what is left out and why.
    fn choose(&mut self, has_files: bool) -> Result<Vec<String>, Failure> {
        let asked = std::mem::take(&mut self.args.nemeses);
        let mut left_out = Vec::new();
        for nemesis in Nemesis::value_variants() {
            let is_asked_for = asked.contains(nemesis);
            let (applies, obstacle) = self.applies(*nemesis, has_files);
            match (asked.is_empty() && applies || is_asked_for, obstacle) {
                (true, Some(obstacle)) if is_asked_for => {
                    return Err(format!("{nemesis} is not possible here: {obstacle}").into());
                }
                (true, Some(obstacle)) => left_out.push(format!("{nemesis} ({obstacle})")),
                (true, None) if applies => self.nemeses.push(*nemesis),
                (true, None) => return Err(format!("{nemesis} does not apply to this bus").into()),
                (false, _) => {}
            }
        }
        let jumps = |nemesis: &Nemesis| matches!(nemesis, Nemesis::ClockForward | Nemesis::ClockBack);
        self.faketime = self.faketime.take().filter(|_| self.nemeses.iter().any(jumps));
        Ok(left_out)
    }

    /// Returns whether a nemesis applies to this bus, and what this machine lacks for it.
    fn applies(&self, nemesis: Nemesis, has_files: bool) -> (bool, Option<&'static str>) {
        match nemesis {
            Nemesis::Kill | Nemesis::Term | Nemesis::Pause => (true, None),
            Nemesis::EioWrite | Nemesis::EioSync if has_files => (true, strace_is_missing()),
            Nemesis::ClockForward | Nemesis::ClockBack if has_files => {
                (true, self.faketime.is_none().then_some("install libfaketime"))
            }
            Nemesis::DiskFull if has_files => {
                (true, (!Disk::can_be_small(&self.folder)).then_some("a file system cannot be mounted"))
            }
            other => (self.server.as_ref().is_some_and(|server| server.nemeses().contains(&other)), None),
        }
    }

    fn seed_of(&self, round: u64) -> u64 {
        self.seed.wrapping_add(round - 1)
    }

    /// Returns the folder of a round's journals.
    fn journals(&self, round: u64) -> PathBuf {
        self.folder.join(format!("round-{round}"))
    }

    fn place(&self, stream: String, files: &Path) -> Place {
        let fresh = Some((stream, files.to_owned()));
        Place { registry: self.registry.clone(), url: self.url.clone(), fresh }
    }

    fn terms(&self) -> Terms {
        let window = self.capabilities.dedup_window.unwrap_or(DEDUP_WINDOW);
        let forgets = self.server.as_ref().map_or(Duration::ZERO, |server| server.forgets_settlements());
        Terms {
            dedup_window: millis(window),
            attempts: self.args.load.attempts,
            lease: self.args.load.lease_seconds * 1_000,
            fenced: self.capabilities.fenced_settlement.is_yes(),
            total_order: self.capabilities.total_order.is_yes(),
            counts_deliveries: self.capabilities.nak_with_delay.is_yes(),
            forgets_settlements: millis(forgets),
            reuses_sequences: self.server.as_ref().is_some_and(|server| server.reuses_sequences()),
            recovery: self.args.recovery_seconds * 1_000,
            health: millis(HEALTH),
        }
    }

    /// Runs one round on a fresh stream.
    async fn round(&mut self, round: u64) -> Result<(Figures, Vec<Verdict>), Failure> {
        let journals = self.journals(round);
        fs::create_dir_all(&journals)?;
        let disk = Disk::new(journals.join("files"), self.nemeses.contains(&Nemesis::DiskFull))?;
        let journal = Arc::new(Journal::open(&journals, "driver")?);
        journal.note(Fact::Terms(self.terms()));
        let place = self.place(stream_name(), disk.folder());
        // The stream exists before a fault can prevent that.
        let (provider, letters) = place.connect_when_possible().await?;
        close(&*provider, &*letters).await;

        let mut members = self.strike_all(round, &journals, &disk, &place, &journal).await?;
        journal.note(Fact::Quiet);
        let deadline = Instant::now() + Duration::from_secs(self.args.recovery_seconds);
        for member in &mut members {
            member.rest(deadline).await?;
        }
        let connected = tokio::time::timeout_at(deadline, place.connect_when_possible());
        let (provider, letters) = connected.await.map_err(|_| "no connection after the last nemesis")??;
        wait_for_consumers(&*provider, deadline).await;
        for member in members {
            member.stop().await?;
        }
        let finale = read_finale(&*provider, &letters, deadline).await?;
        finale.save(&journals)?;
        let lines = Lines::read_all(&journals)?;
        let (verdicts, figures) = (check(&lines, &finale), Figures::of(&lines, &finale));
        if verdicts.is_empty() {
            forget(&*provider, &*letters).await;
        } else {
            close(&*provider, &*letters).await;
            self.keep_files(&disk, &journals)?;
        }
        drop(disk);
        if verdicts.is_empty() && !self.args.keep {
            fs::remove_dir_all(&journals)?;
        }
        Ok((figures, verdicts))
    }

    /// Copies the files of the stream beside the journals, because they are evidence.
    fn keep_files(&self, disk: &Disk, journals: &Path) -> io::Result<()> {
        let kept = journals.join("stream");
        fs::create_dir_all(&kept)?;
        for file in fs::read_dir(disk.folder())? {
            let file = file?;
            fs::copy(file.path(), kept.join(file.file_name()))?;
        }
        Ok(())
    }

    /// Strikes all members and the backend at the same time, and returns the members at the end.
    async fn strike_all(
        &mut self,
        round: u64,
        journals: &Path,
        disk: &Disk,
        place: &Place,
        journal: &Arc<Journal>,
    ) -> Result<Vec<Member>, Failure> {
        let Some((stream, _)) = &place.fresh else { return Err("a round has a fresh stream".into()) };
        let arguments = self.arguments(round, journals, disk.folder(), stream);
        let faketime = self.faketime.clone();
        let crew = Crew { arguments, journals: journals.to_owned(), faketime, journal: Arc::clone(journal) };
        let crew = Arc::new(crew);
        let (length, lease) =
            (Duration::from_secs(self.args.seconds), Duration::from_secs(self.args.load.lease_seconds));
        let seed = self.seed_of(round);
        let (on_workers, on_backend): (Vec<_>, Vec<_>) =
            self.nemeses.iter().copied().partition(|nemesis| nemesis.strikes_a_worker());

        let begin = Instant::now();
        let mut lanes = JoinSet::new();
        for lane in 1..=self.args.workers {
            let member = Member::start(Arc::clone(&crew), format!("w{lane}"))?;
            lanes.spawn(member.strike_all(schedule(seed, lane, &on_workers, length, lease), begin));
        }
        let strikes = schedule(seed, 0, &on_backend, length, lease);
        self.strike_backend(strikes, begin, stream, disk, journal).await?;
        // Without a nemesis, the load has its time all the same.
        tokio::time::sleep_until(begin + length).await;
        let mut members = Vec::new();
        while let Some(member) = lanes.join_next().await {
            members.push(member??);
        }
        Ok(members)
    }

    async fn strike_backend(
        &mut self,
        strikes: Vec<Strike>,
        begin: Instant,
        stream: &str,
        disk: &Disk,
        journal: &Journal,
    ) -> Result<(), Failure> {
        for strike in strikes {
            tokio::time::sleep_until(begin + strike.at).await;
            let nemesis = strike.nemesis;
            journal.note(Fact::NemesisBegun { nemesis, target: None });
            match &mut self.server {
                Some(server) if nemesis != Nemesis::DiskFull => server.strike(strike, stream).await,
                _ => {
                    disk.fill()?;
                    tokio::time::sleep(strike.lasts).await;
                    disk.free()?;
                }
            }
            journal.note(Fact::NemesisEnded { nemesis, target: None });
        }
        Ok(())
    }

    /// Returns the arguments that all workers have.
    fn arguments(&self, round: u64, journals: &Path, files: &Path, stream: &str) -> Vec<String> {
        let load = &self.args.load;
        let text = |path: &Path| path.display().to_string();
        let mut arguments = vec!["work".to_owned(), self.url.clone()];
        for (name, value) in [
            ("--journals", text(journals)),
            ("--files", text(files)),
            ("--stream", stream.to_owned()),
            ("--publishers", load.publishers.to_string()),
            ("--pause-millis", load.pause_millis.to_string()),
            ("--keys", load.keys.to_string()),
            ("--lease-seconds", load.lease_seconds.to_string()),
            ("--attempts", load.attempts.to_string()),
            ("--seed", self.seed_of(round).to_string()),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        if load.no_consumers {
            arguments.push("--no-consumers".to_owned());
        }
        arguments
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a name that no other stream has.
fn stream_name() -> String {
    let unique = Event::new("", "", "", "", serde_json::Value::Null).id.replace('-', "");
    format!("LEDGER_{unique}")
}

/// Waits until the consumers have settled everything. The checker finds what they have not.
async fn wait_for_consumers(provider: &dyn EventProvider, deadline: Instant) {
    while Instant::now() < deadline {
        if let Ok(positions) = positions(provider).await
            && positions.iter().all(|position| position.lag == 0 && position.pending == 0)
        {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Reads the end of the round, as often as that takes while the provider is unavailable.
async fn read_finale(
    provider: &dyn EventProvider,
    letters: &Arc<dyn EventProvider>,
    deadline: Instant,
) -> Result<Finale, Failure> {
    loop {
        match Finale::read(provider, Arc::clone(letters)).await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => tokio::time::sleep(POLL).await,
            done => return Ok(done?),
        }
    }
}

/// Deletes the streams of a round. What remains is removed with the server or the folder.
async fn forget(provider: &dyn EventProvider, letters: &dyn EventProvider) {
    let _ = provider.delete_stream().await;
    let _ = letters.delete_stream().await;
    close(provider, letters).await;
}

async fn close(provider: &dyn EventProvider, letters: &dyn EventProvider) {
    let _ = provider.close().await;
    let _ = letters.close().await;
}
