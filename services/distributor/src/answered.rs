//! Answers that are given again to who asks again: for calls whose effect the database does not remember by request_id.

use std::{
    collections::{VecDeque, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Mutex,
    time::Duration,
};

use millrace_runtime::status::Fault;
use prost::Message;
use uuid::Uuid;

use crate::shared::lock;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(600);

/// Answers kept. The oldest goes when there is no room.
const MOST: usize = 256;

/// The answers of a replica to calls that bore a request_id.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    answers: Mutex<VecDeque<Answer>>,
}

#[derive(Debug)]
struct Answer {
    key: Uuid,
    /// What was asked, so that a key that is used for something else is noticed.
    asked: u64,
    at: Duration,
    answer: Vec<u8>,
}

impl Answered {
    /// The answer to the same call before, if it is known. `now` is the replica's own clock.
    pub(crate) fn before<R: Message + Default>(
        &self,
        key: Option<Uuid>,
        request: &impl Message,
        now: Duration,
    ) -> Result<Option<R>, Fault> {
        let Some(key) = key else { return Ok(None) };
        let mut answers = lock(&self.answers);
        answers.retain(|answer| now.saturating_sub(answer.at) < KEPT);
        match answers.iter().find(|answer| answer.key == key) {
            None => Ok(None),
            Some(answer) if answer.asked == digest(request) => Ok(R::decode(&*answer.answer).ok()),
            Some(_) => Err(Fault::already_exists(
                "REQUEST_ID_REUSED",
                "the request_id was used for another call; nothing was changed",
            )),
        }
    }

    /// Keeps an answer.
    pub(crate) fn keep(&self, key: Option<Uuid>, request: &impl Message, answer: &impl Message, now: Duration) {
        let Some(key) = key else { return };
        let mut answers = lock(&self.answers);
        answers.truncate(MOST - 1);
        answers.push_front(Answer { key, asked: digest(request), at: now, answer: answer.encode_to_vec() });
    }
}

fn digest(request: &impl Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use millrace_proto::distributor::v1::{DeleteRouteRequest as Request, DiscardQuarantinedRowsResponse as Response};

    use super::*;

    fn request(name: &str) -> Request {
        Request { name: name.into(), ..Default::default() }
    }

    #[test]
    fn r11_the_same_call_gets_the_same_answer_for_a_while_and_another_one_none() {
        let answered = Answered::default();
        let (key, minute) = (Some(Uuid::from_u128(1)), Duration::from_secs(60));
        let response = Response { discarded: 3, ..Default::default() };
        let before = |request: &Request, now| answered.before::<Response>(key, request, now);
        assert_eq!(before(&request("a"), minute).unwrap(), None);
        answered.keep(key, &request("a"), &response, minute);
        assert_eq!(before(&request("a"), 2 * minute).unwrap(), Some(response.clone()));
        assert_eq!(before(&request("b"), 2 * minute).unwrap_err().reason, "REQUEST_ID_REUSED");
        assert_eq!(answered.before::<Response>(None, &request("a"), minute).unwrap(), None);
        assert_eq!(before(&request("a"), minute + KEPT).unwrap(), None);
        for number in 0..2 * MOST as u128 {
            answered.keep(Some(Uuid::from_u128(number + 9)), &request("c"), &response, minute);
        }
        assert_eq!(lock(&answered.answers).len(), MOST);
    }
}
