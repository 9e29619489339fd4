//! The run: one part after the other, on one server.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{
    ceiling,
    cli::{Part, RunArgs},
    closed::Loop,
    dispatch,
    fleet::Shape,
    life::Bench,
    memory, null,
    plan::Plan,
    postgres::Server,
    report::{Ceilings, Environment, Figures, Submit},
    services::Services,
    store,
    submission::{self, Ids},
    usage::{self, Watched},
};

/// Orchestrators that drain.
const ORCHESTRATORS: usize = 2;

/// Settings of the server that are recorded beside `fsync` and `synchronous_commit`.
const SETTINGS: [&str; 7] = [
    "full_page_writes",
    "wal_sync_method",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
];

/// Measures, prints the table and writes the summary.
pub(crate) async fn run(args: &RunArgs) -> Result<()> {
    let run = Run::new(args).await?;
    let mut figures = Figures {
        environment: run.environment().await?,
        ceilings: Ceilings::default(),
        submit: None,
        submit_without_ids: None,
        drain: None,
        life: None,
        life_without_ids: None,
        dispatch: None,
        dispatch_agent: None,
        memory: Vec::new(),
    };
    run.ceilings(&mut figures.ceilings).await?;
    if [Part::Memory, Part::Submit, Part::Drain, Part::Life, Part::Dispatch].iter().any(|part| args.wants(*part)) {
        run.services(&mut figures).await?;
    }
    for _ in 1..run.plan.passes {
        run.ceilings(&mut figures.ceilings).await?;
    }
    let path = args.out.join("summary.json");
    let json = serde_json::to_string_pretty(&figures.summary())?;
    std::fs::write(&path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    println!("{}", figures.table());
    run.say(&format!("summary in {}", path.display()));
    Ok(())
}

struct Run<'a> {
    args: &'a RunArgs,
    plan: Plan,
    server: Server,
    millrace: PathBuf,
    begin: Instant,
}

impl<'a> Run<'a> {
    async fn new(args: &'a RunArgs) -> Result<Self> {
        std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
        let millrace = match &args.millrace {
            Some(path) => path.clone(),
            None => beside()?,
        };
        let server = Server::find(args.postgres.as_deref())?;
        Ok(Self { args, plan: Plan::new(args.quick), server, millrace, begin: Instant::now() })
    }

    /// Tells on standard error how far it is.
    fn say(&self, what: &str) {
        eprintln!("[{:5.1} s] {what}", self.begin.elapsed().as_secs_f64());
    }

    /// PostgreSQL's processes, if they run on this machine.
    async fn postgres(&self) -> Result<Option<Watched>> {
        let postmaster = self.server.postmaster().await?;
        Ok(postmaster.map(|pid| Watched { name: "postgres", pid, with_children: true }))
    }

    async fn environment(&self) -> Result<Environment> {
        let version = Command::new(&self.millrace).arg("--version").output().await;
        let version = version.with_context(|| format!("starting {}", self.millrace.display()))?;
        let mut settings = BTreeMap::new();
        for name in SETTINGS {
            settings.insert(name, self.server.setting(name).await?);
        }
        let environment = Environment {
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            quick: self.args.quick,
            millrace: String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            postgres: self.server.setting("server_version").await?,
            fsync: self.server.setting("fsync").await?,
            synchronous_commit: self.server.setting("synchronous_commit").await?,
            settings,
            load_before: usage::load(),
            fdatasync_ms: fdatasync_ms()?,
        };
        if environment.fsync != "on" || environment.synchronous_commit != "on" {
            bail!("the server runs with fsync or synchronous_commit off: its figures would promise what is not kept");
        }
        Ok(environment)
    }

    /// One pass over what the machine does without the services.
    async fn ceilings(&self, ceilings: &mut Ceilings) -> Result<()> {
        if !self.args.wants(Part::Ceilings) {
            return Ok(());
        }
        let (plan, server) = (&self.plan, &self.server);
        // pgbench and psql are children of this process.
        let clients = Watched { name: "clients", pid: std::process::id(), with_children: true };
        let watched: Vec<Watched> = std::iter::once(clients).chain(self.postgres().await?).collect();
        self.say("ceiling: PostgreSQL, bare shape");
        ceilings.bare.push(ceiling::bare(server, &watched, plan.pgbench).await?);
        self.say("ceiling: PostgreSQL, own schema");
        ceilings.own.push(ceiling::own(server, &watched, plan.pgbench, true).await?);
        self.say("ceiling: PostgreSQL, own schema, without request ids");
        ceilings.own_without_ids.push(ceiling::own(server, &watched, plan.pgbench, false).await?);
        self.say("ceiling: the store crate");
        ceilings.store.push(store::lives(server, &watched, plan.store).await?);
        self.say("ceiling: null unary calls");
        let (many, one) = null::measure(plan.null).await?;
        ceilings.null_unary_per_s.push(many.per_s());
        ceilings.null_unary_ms.push(one.quantile_ms(0.5));
        Ok(())
    }

    /// Everything that is measured of the services.
    async fn services(&self, figures: &mut Figures) -> Result<()> {
        let (args, plan) = (self.args, &self.plan);
        self.say("starting a queue service and a distributor");
        let services = Services::start(&self.server, &self.millrace, &args.out).await?;
        let mut watched = services.watched();
        watched.extend(self.postgres().await?);
        let shape = Shape { count: ORCHESTRATORS, slots: args.slots };
        let bench = Bench { services: &services, watched: &watched, shape, submitters: args.submitters };

        self.say("100,000 tasks to wait in a queue beside, and memory");
        let memory = memory::fill_and_read(&services, args.submitters).await?;
        if args.wants(Part::Memory) {
            figures.memory = memory;
        }
        if args.wants(Part::Dispatch) {
            self.say("dispatch at 200 tasks/s, to the start of the process");
            figures.dispatch = Some(dispatch::by_client(&services, plan.dispatch).await?);
            self.say("dispatch at 200 tasks/s, by the agent");
            figures.dispatch_agent = Some(dispatch::by_agent(&services, plan.agent).await?);
        }
        if args.wants(Part::Life) {
            self.say("whole life");
            figures.life = Some(bench.whole("life", plan.life, Ids::Distinct).await?);
            self.say("whole life, without request ids");
            figures.life_without_ids = Some(bench.whole("life-without-ids", plan.life / 2, Ids::None).await?);
        }
        if args.wants(Part::Drain) {
            self.say("a backlog, and its drain");
            figures.drain = Some(bench.drain("drain", plan.backlog).await?);
        }
        if args.wants(Part::Submit) {
            self.say("SubmitTask, 64 in flight");
            figures.submit = Some(self.submit(&bench, "submit", Ids::Distinct, plan.submit).await?);
            self.say("SubmitTask, 64 in flight, without request ids");
            let time = plan.submit / 2;
            figures.submit_without_ids = Some(self.submit(&bench, "submit-without-ids", Ids::None, time).await?);
        }
        Ok(())
    }

    async fn submit(&self, bench: &Bench<'_>, tenant: &str, ids: Ids, time: Duration) -> Result<Submit> {
        let database = &bench.services.database;
        database.psql("CHECKPOINT").await?;
        let before = usage::snapshot(bench.watched);
        let submitted: Loop = submission::unary(&bench.services.distributor.endpoint, tenant, ids, time).await?;
        let stored = database.number(&format!("SELECT count(*) FROM tasks WHERE tenant = '{tenant}'")).await?;
        let stored = u64::try_from(stored)?;
        let used = usage::since(bench.watched, &before, stored);
        // Warming up stores some as well.
        if stored < submitted.items {
            bail!("{} tasks were acknowledged and {stored} are stored", submitted.items);
        }
        bench.empty().await?;
        let (p50_ms, p99_ms) = (submitted.quantile_ms(0.5), submitted.quantile_ms(0.99));
        Ok(Submit { per_s: submitted.per_s(), p50_ms, p99_ms, used })
    }
}

/// The `millrace` binary that lies beside this one.
fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this process does not know its own path")?;
    let path = own.parent().unwrap_or(Path::new(".")).join("millrace");
    match path.is_file() {
        true => Ok(path),
        false => bail!("there is no {}: build it with `cargo build --release -p millrace`", path.display()),
    }
}

/// The median time of an fdatasync behind 8 KiB.
fn fdatasync_ms() -> Result<f64> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let mut file = File::create(folder.path().join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..100 {
        file.write_all(&[0; 8192])?;
        let begin = Instant::now();
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1000.0)
}
