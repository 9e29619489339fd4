//! Opening, closing and dying; the one connection that writes.

use super::*;

#[test]
fn a_second_opening_of_the_same_file_is_refused_by_name() {
    let bed = Bed::new();
    let refused = SqliteStore::open(bed.path().to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    let expected = format!("in use by another process (process {})", std::process::id());
    assert!(matches!(&refused, StoreError::Config(text) if text.contains(&expected)), "{refused}");
    // The one that has it is not harmed, and once it is closed the next one gets in.
    bed.submit(1);
    assert_eq!(bed.reopen().waiting().len(), 1);
}

#[cfg(unix)]
#[test]
fn a_link_leads_to_the_same_lock() {
    let bed = Bed::new();
    let link = bed.folder.path().join("link.db");
    std::os::unix::fs::symlink(bed.path(), &link).unwrap();
    let refused = SqliteStore::open(link.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(refused, StoreError::Config(_)), "{refused}");
}

#[test]
fn a_file_that_is_missing_or_has_no_schema_or_is_not_a_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("millrace.db");
    let open = || SqliteStore::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(open(), StoreError::Schema(_)));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(open(), StoreError::Schema(_)));
    std::fs::write(&path, b"not a database, and long enough that nobody takes it for an empty one".repeat(100))
        .unwrap();
    let error = open();
    assert!(matches!(&error, StoreError::Internal(text) if text.contains("not a database")), "{error}");
    for memory in [":memory:", "file:millrace.db"] {
        let error = SqliteStore::open(memory, &OpenOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::Config(_)), "{error}");
    }
}

/// The scaler is refused by a database without its tables; everything else of this build works on it.
#[test]
fn a_caller_that_needs_a_newer_schema_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("millrace.db").display());
    migrate::up(&url).unwrap();
    let scaler = OpenOptions { oldest_schema: migrate::FLEETS, ..OpenOptions::default() };
    assert!(crate::open(&url, &scaler).is_ok());
    let newer = migrate::status(&url).unwrap().iter().filter(|one| one.name.as_str() >= migrate::FLEETS).count();
    migrate::down(&url, newer).unwrap();
    assert!(
        matches!(crate::open(&url, &scaler), Err(StoreError::Schema(text)) if text.contains("millrace migrate up"))
    );
    let store = crate::open(&url, &OpenOptions::default()).unwrap();
    assert!(store.queues().is_ok());
    assert!(matches!(store.pools(), Err(StoreError::Schema(_))));
}

#[test]
fn everything_is_there_after_reopening() {
    let bed = Bed::new();
    let tasks = bed.submit(3);
    let session = bed.session();
    let claimed = bed.claim(session, &tasks[..2]);
    let completion = Completion {
        lease: lease_of(&claimed[0]),
        state: State::Succeeded,
        outcome: succeeded(),
        failures: 0,
        losses: 0,
    };
    assert_eq!(bed.store.complete(std::slice::from_ref(&completion)).unwrap(), [Completed::Recorded]);
    let before: Vec<TaskRow> = bed.store.list(&ListFilter::default(), None, 10).unwrap().rows;
    let bed = bed.reopen();
    assert_eq!(bed.store.list(&ListFilter::default(), None, 10).unwrap().rows, before);
    assert_eq!(bed.store.complete(&[completion]).unwrap(), [Completed::Recorded]);
    assert_eq!(bed.store.held_by(session).unwrap().len(), 1);
    assert_eq!(bed.waiting(), tasks[2..]);
}

/// Run by the test below in a process of its own: submits until it is killed, and tells of each commit.
#[test]
#[ignore = "the other half of a_killed_process_loses_nothing_that_it_acknowledged"]
fn child_that_submits_until_it_is_killed() {
    let Ok(path) = std::env::var("MILLRACE_TEST_CHILD_DATABASE") else { return };
    let store = open(Path::new(&path));
    for _ in 0..1_000_000 {
        let batch: Vec<NewTask> = (0..10).map(|_| new_task()).collect();
        store.submit(&batch, false).unwrap();
        let ids: Vec<String> = batch.iter().map(|task| task.envelope.id.to_string()).collect();
        println!("stored {}", ids.join(" "));
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let bed = Bed::new();
    let (folder, path) = (bed.folder, bed.store);
    drop(path);
    let path = folder.path().join("millrace.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::tests::opening::child_that_submits_until_it_is_killed", "--ignored", "--nocapture"])
        .env("MILLRACE_TEST_CHILD_DATABASE", &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged: Vec<TaskId> = Vec::new();
    let mut read = |line: std::io::Result<String>| {
        if let Ok(line) = line
            && let Some((_, ids)) = line.split_once("stored ")
        {
            acknowledged.extend(ids.split(' ').filter_map(|id| id.parse::<TaskId>().ok()));
        }
    };
    lines.by_ref().take(30).for_each(&mut read);
    let second = SqliteStore::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert!(second.to_string().contains(&format!("process {}", child.id())), "{second}");
    child.kill().unwrap();
    child.wait().unwrap();
    // What it told of between the last line read and its death counts as well.
    lines.for_each(&mut read);
    assert!(acknowledged.len() >= 100, "{}", acknowledged.len());
    let store = open(&path);
    let found = store.tasks(&acknowledged).unwrap();
    assert_eq!(found.len(), acknowledged.len());
    let page = store.list(&ListFilter::default(), None, 10_000).unwrap();
    assert_eq!(page.rows.len() % 10, 0, "half a batch was kept");
}

#[test]
fn a_full_disk_is_unavailable_and_leaves_no_half_batch() {
    let bed = Bed::new();
    bed.submit(10);
    let limit = |pages: &str| {
        bed.store.files.write(|connection, _| {
            let pragma = sql_query(format!("PRAGMA max_page_count = {pages}"));
            pragma.execute(connection).map(|_| ()).map_err(Into::into)
        })
    };
    // SQLite takes the size that the file has when that is more.
    limit("1").unwrap();
    let batch: Vec<NewTask> = (0..500).map(|_| NewTask { spec: vec![7; 4096], ..new_task() }).collect();
    let error = bed.store.submit(&batch, false).unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("full")), "{error}");
    assert_eq!(bed.waiting().len(), 10);
    limit("1000000").unwrap();
    assert_eq!(bed.store.submit(&batch, true).unwrap().len(), 500);
    assert_eq!(bed.waiting().len(), 510);
}

#[test]
fn a_panic_in_a_transaction_takes_nothing_with_it() {
    let bed = Bed::new();
    let task = new_task();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bed.store.files.write(|connection, now| {
            submit::submit(connection, now, std::slice::from_ref(&task), false)?;
            let stop = true;
            assert!(!stop, "on purpose");
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(bed.store.task(task.envelope.id).unwrap(), None);
    bed.submit(1);
}

#[test]
fn a_writer_that_is_busy_makes_the_next_one_wait_no_longer_than_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("millrace.db");
    migrate::up(&format!("sqlite:{}", path.display())).unwrap();
    let options = OpenOptions { lock_timeout: Duration::from_millis(50), ..OpenOptions::default() };
    let store = SqliteStore::open(path.to_str().unwrap(), &options).unwrap();
    let error = store.files.write(|_, _| Ok(store.tick(TickRule::default()).unwrap_err())).unwrap();
    assert!(matches!(error, StoreError::Timeout(_)), "{error}");
    // People's reads go on meanwhile.
    store.files.write(|_, _| Ok(store.queues().unwrap())).unwrap();
    store.tick(TickRule::default()).unwrap();
}

#[test]
fn the_clock_never_goes_back() {
    let clock = connection::Clock::default();
    let mut last = 0;
    for _ in 0..10_000 {
        let now = clock.now();
        assert!(now >= last);
        last = now;
    }
}
