//! The commands that change queues.

use std::time::{Duration, SystemTime};

use millrace_proto::queue::v1::{
    CreateQueueRequest, DeleteMode, DeleteQueueRequest, PauseQueueRequest, Queue, ResumeQueueRequest,
    UpdateQueueRequest,
};
use prost_types::{FieldMask, Timestamp};

use super::QUEUE;
use super::show::pause_text;
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, printable};
use crate::time::{parse_duration, parse_moment, to_proto};

/// Flags of `queue create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// A sentence for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// For tasks that set no timeout.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    default_timeout: Option<Duration>,
    /// For tasks that set no time to expire after.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    default_expire_after: Option<Duration>,
}

/// Flags of `queue update`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// A sentence for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// For tasks that set no timeout.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    default_timeout: Option<Duration>,
    /// For tasks that set no time to expire after.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    default_expire_after: Option<Duration>,
    /// Unsets this; may be given many times.
    #[arg(long, value_name = "FIELD", value_enum)]
    clear: Vec<Field>,
}

/// What `queue update` can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Field {
    /// The description.
    Description,
    /// The default timeout.
    DefaultTimeout,
    /// The default time to expire after.
    DefaultExpireAfter,
}

impl Field {
    /// Its name in an update mask.
    fn path(self) -> &'static str {
        match self {
            Field::Description => "description",
            Field::DefaultTimeout => "default_timeout",
            Field::DefaultExpireAfter => "default_expire_after",
        }
    }
}

/// Flags of `queue delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// What happens to the work that waits in it.
    #[arg(long, value_enum, default_value_t = Mode::Refuse)]
    mode: Mode,
    /// The queue that the work moves to.
    #[arg(long, value_name = "NAME", required_if_eq("mode", "move"))]
    move_to: Option<String>,
}

/// What happens to waiting work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Nothing may wait or run.
    Refuse,
    /// No more tasks are taken, and the queue goes once it is empty.
    Drain,
    /// It moves to another queue.
    Move,
}

/// Flags of `queue pause`.
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Why, for whoever finds it paused.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// It resumes by itself then: RFC 3339, or +2h from now. Without it someone must resume it.
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<Timestamp>,
}

fn parse_until(text: &str) -> Result<Timestamp, String> {
    parse_moment(text, SystemTime::now())
}

/// Flags of `queue resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The queue's name.
    #[arg(value_name = "NAME")]
    name: String,
}

/// Creates a queue.
pub(crate) async fn create(args: CreateArgs) -> Result<(), Failure> {
    let queue = Queue {
        name: args.name,
        description: args.description,
        default_timeout: args.default_timeout.map(to_proto),
        default_expire_after: args.default_expire_after.map(to_proto),
        ..Default::default()
    };
    let client = Client::connect(&args.client, Service::Queue).await?;
    let request = CreateQueueRequest { request_id: request_id(), queue: Some(queue) };
    let answer = client.change(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.create_queue(request).await }
    });
    print(
        args.client.output,
        answer.await?.queue,
        "was created; tasks join it once a route leads to it: `millrace route set`",
    )
}

/// Changes a queue.
pub(crate) async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let format = args.client.output;
    let paths = mask(&args)?;
    let client = Client::connect(&args.client, Service::Queue).await?;
    let queue = Queue {
        name: args.name,
        description: args.description.unwrap_or_default(),
        default_timeout: args.default_timeout.map(to_proto),
        default_expire_after: args.default_expire_after.map(to_proto),
        ..Default::default()
    };
    let request =
        UpdateQueueRequest { request_id: request_id(), queue: Some(queue), update_mask: Some(FieldMask { paths }) };
    let answer = client.change(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.update_queue(request).await }
    });
    print(format, answer.await?.queue, "was updated")
}

/// The fields that the flags change or clear.
fn mask(args: &UpdateArgs) -> Result<Vec<String>, Failure> {
    let mut paths = Vec::new();
    for (field, given) in [
        (Field::Description, args.description.is_some()),
        (Field::DefaultTimeout, args.default_timeout.is_some()),
        (Field::DefaultExpireAfter, args.default_expire_after.is_some()),
    ] {
        let cleared = args.clear.contains(&field);
        if given && cleared {
            let flag = field.path().replace('_', "-");
            return Err(Failure::Usage(format!("--{flag} and --clear {flag} contradict each other")));
        }
        if given || cleared {
            paths.push(field.path().to_owned());
        }
    }
    match paths.is_empty() {
        true => Err(Failure::Usage("nothing to change: give a new value, or --clear FIELD".to_owned())),
        false => Ok(paths),
    }
}

/// Deletes a queue, or starts to.
pub(crate) async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    if args.move_to.is_some() && args.mode != Mode::Move {
        return Err(Failure::Usage("--move-to goes with --mode move".to_owned()));
    }
    let mode = match args.mode {
        Mode::Refuse => DeleteMode::Refuse,
        Mode::Drain => DeleteMode::Drain,
        Mode::Move => DeleteMode::Move,
    };
    let client = Client::connect(&args.client, Service::Queue).await?;
    if let Some(target) = &args.move_to {
        // The service looks at the queue itself first, and so at its routes: whoever has mistyped the target would be sent
        // to change those.
        if let Err(status) = super::one(&client, target).await
            && status.code() == tonic::Code::NotFound
        {
            return Err(Failure::Request(format!("--move-to: {}", client.failure(&status))));
        }
    }
    let request = DeleteQueueRequest {
        request_id: request_id(),
        name: args.name.clone(),
        mode: mode.into(),
        move_to: args.move_to.unwrap_or_default(),
    };
    let answer = client.change(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.delete_queue(request).await }
    });
    let answer = answer.await?;
    match (args.client.output, &answer.queue) {
        (Format::Json, _) => output::json_line("millrace.queue.v1.DeleteQueueResponse", &answer),
        (Format::Table, None) => output::line(&format!("queue {} is gone", printable(&args.name))),
        (Format::Table, Some(queue)) => {
            output::line(&format!("queue {} takes no more tasks and goes once it is empty", printable(&queue.name)))
        }
    }
}

/// Pauses a queue.
pub(crate) async fn pause(args: PauseArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Queue).await?;
    let request =
        PauseQueueRequest { request_id: request_id(), name: args.name, reason: args.reason, until: args.until };
    let answer = client.change(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.pause_queue(request).await }
    });
    let queue = answer.await?.queue.unwrap_or_default();
    let how = queue.pause.as_ref().map(pause_text).unwrap_or_default();
    print(args.client.output, Some(queue), &format!("is {how}"))
}

/// Resumes a queue.
pub(crate) async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Queue).await?;
    let request = ResumeQueueRequest { request_id: request_id(), name: args.name };
    let answer = client.change(|| {
        let (mut calls, request) = (client.queue(), request.clone());
        async move { calls.resume_queue(request).await }
    });
    print(args.client.output, answer.await?.queue, "is open")
}

fn print(format: Format, queue: Option<Queue>, what: &str) -> Result<(), Failure> {
    let queue = queue.unwrap_or_default();
    match format {
        Format::Json => output::json_line(QUEUE, &queue),
        Format::Table => output::line(&format!("queue {} {what}", printable(&queue.name))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn paths(args: &[&str]) -> Result<Vec<String>, Failure> {
        mask(&Line::parse_from([&["x", "q"], args].concat()).args)
    }

    #[test]
    fn the_mask_names_what_is_given_or_cleared() {
        assert_eq!(paths(&["--description", ""]).unwrap(), ["description"]);
        assert_eq!(
            paths(&["--default-timeout", "5m", "--clear", "default-expire-after"]).unwrap(),
            ["default_timeout", "default_expire_after"]
        );
        assert_eq!(paths(&[]).unwrap_err().code(), 64);
        assert_eq!(paths(&["--default-timeout", "5m", "--clear", "default-timeout"]).unwrap_err().code(), 64);
    }
}
