//! Whom a distributor reaches: which link serves each queue, and what follows for owners that are not reached (R5).
//!
//! A link is an exchange stream to one owner of queues, which announces on it what it owns. Two owners may believe in one
//! queue for a while, and two links may lead to one process; so every announcement is kept until its link ends, and the
//! link of a queue is chosen anew from all of them whenever one of them changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long an owner may be out of reach before the orchestrators of its queues are sent to another replica.
pub const CUT_OFF: Duration = Duration::from_secs(5);

/// What the owner at the other end of each link has announced, and the link of each queue. `L` is a link's number, which is
/// never used again and rises from link to link.
#[derive(Debug)]
pub struct Owners<L> {
    announced: BTreeMap<L, BTreeMap<String, i64>>,
    chosen: BTreeMap<String, (L, i64)>,
}

impl<L> Default for Owners<L> {
    fn default() -> Self {
        Self { announced: BTreeMap::new(), chosen: BTreeMap::new() }
    }
}

impl<L: Copy + Ord> Owners<L> {
    /// The owner at the other end of a link owns these queues, each with the epoch of its ownership, and no others. Returns
    /// the queues whose link or epoch has changed: their demand has to be sent again.
    pub fn announce(&mut self, link: L, queues: impl IntoIterator<Item = (String, i64)>) -> Vec<String> {
        let queues: BTreeMap<String, i64> = queues.into_iter().collect();
        let before = self.announced.insert(link, queues.clone()).unwrap_or_default();
        self.choose(link, before.into_keys().chain(queues.into_keys()))
    }

    /// A link has ended. Returns the queues that another link serves now: their demand has to be sent again.
    pub fn end(&mut self, link: L) -> Vec<String> {
        let before = self.announced.remove(&link).unwrap_or_default();
        self.choose(link, before.into_keys())
    }

    /// The link of a queue, if an owner of it is reached.
    pub fn link(&self, queue: &str) -> Option<L> {
        self.chosen.get(queue).map(|(link, _)| *link)
    }

    /// Whether an owner has announced anything on this link, be it that it owns nothing.
    pub fn has_announced(&self, link: L) -> bool {
        self.announced.contains_key(&link)
    }

    /// Chooses the links of these queues anew after `changed` has changed: the latest epoch is the true one. Among links of the
    /// same epoch the present one stays, and the youngest follows it, which is the likeliest to live.
    fn choose(&mut self, changed: L, queues: impl Iterator<Item = String>) -> Vec<String> {
        let mut news = BTreeSet::new();
        for queue in queues {
            let present = self.chosen.get(&queue).copied();
            let served = self.announced.iter().filter_map(|(link, owned)| Some((*owned.get(&queue)?, *link)));
            let best = served.max_by_key(|(epoch, link)| (*epoch, present == Some((*link, *epoch)), *link));
            match best {
                Some((epoch, link)) if present != Some((link, epoch)) => {
                    self.chosen.insert(queue.clone(), (link, epoch));
                    news.insert(queue);
                }
                Some(_) => {}
                None => {
                    self.chosen.remove(&queue);
                }
            }
        }
        debug_assert!(
            self.announced.contains_key(&changed) || self.chosen.values().all(|(link, _)| *link != changed),
            "a link that has ended serves nothing"
        );
        news.into_iter().collect()
    }
}

/// How a try to reach an owner ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEnd {
    /// The owner had announced its queues on the link.
    Announced,
    /// It was not reached.
    Unreached,
    /// The endpoint answers, and not as this owner: the process was started anew, and the owner is no more.
    Replaced,
}

/// Which owners are being dialled, and which are out of reach. `O` names an owner.
#[derive(Debug)]
pub struct Reach<O> {
    dialled: BTreeSet<O>,
    replaced: BTreeSet<O>,
    unreached: BTreeMap<O, Duration>,
}

impl<O> Default for Reach<O> {
    fn default() -> Self {
        Self { dialled: BTreeSet::new(), replaced: BTreeSet::new(), unreached: BTreeMap::new() }
    }
}

impl<O: Copy + Ord> Reach<O> {
    /// Whether a link to this owner is to be opened now; not while one is being kept or tried.
    pub fn dial(&mut self, owner: O) -> bool {
        self.dialled.insert(owner)
    }

    /// The link that was to be opened has ended. Returns whether to look for owners at once: after a link that worked the
    /// queues may have a new owner, while one that was never there is tried again at the next round, or the database and
    /// the network would be asked without a pause.
    pub fn ended(&mut self, owner: O, end: LinkEnd) -> bool {
        self.dialled.remove(&owner);
        match end {
            LinkEnd::Replaced => self.replaced.insert(owner),
            LinkEnd::Announced | LinkEnd::Unreached => self.replaced.remove(&owner),
        };
        end == LinkEnd::Announced
    }

    /// Forgets what is known of owners that own nothing any more.
    pub fn keep(&mut self, owners: &BTreeSet<O>) {
        self.replaced.retain(|owner| owners.contains(owner));
        self.unreached.retain(|owner, _| owners.contains(owner));
    }

    /// Whether the orchestrators of this owner's queues should go to another replica, as seen at a round of looking: the
    /// owner lives by the database, and has been out of reach for [`CUT_OFF`]. One that was replaced is out of reach of
    /// everybody, and its queues have a new owner as soon as its lease has ended. `now` is a clock that only moves forward.
    pub fn is_cut_off(&mut self, owner: O, reached: bool, now: Duration) -> bool {
        if reached || self.replaced.contains(&owner) {
            self.unreached.remove(&owner);
            return false;
        }
        let since = *self.unreached.entry(owner).or_insert(now);
        now.saturating_sub(since) >= CUT_OFF
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owned(queues: &[(&str, i64)]) -> Vec<(String, i64)> {
        queues.iter().map(|(queue, epoch)| ((*queue).to_owned(), *epoch)).collect()
    }

    #[test]
    fn r5_a_queue_is_not_lost_with_one_of_two_links_to_its_owner() {
        let mut owners = Owners::default();
        assert_eq!(owners.announce(1, owned(&[("a", 5), ("b", 5)])), ["a", "b"]);
        assert_eq!(owners.announce(2, owned(&[("a", 5), ("b", 5)])), Vec::<String>::new());
        assert_eq!((owners.link("a"), owners.has_announced(2)), (Some(1), true));
        assert_eq!(owners.end(1), ["a", "b"], "their demand goes over the other link");
        assert_eq!((owners.link("a"), owners.link("b")), (Some(2), Some(2)));
        assert_eq!(owners.end(2), Vec::<String>::new());
        assert_eq!((owners.link("a"), owners.has_announced(2)), (None, false));
    }

    #[test]
    fn r5_the_latest_epoch_is_the_true_one() {
        let mut owners = Owners::default();
        owners.announce(1, owned(&[("a", 5)]));
        assert_eq!(owners.announce(2, owned(&[("a", 6)])), ["a"]);
        assert!(owners.announce(1, owned(&[("a", 5), ("b", 1)])).contains(&"b".to_owned()));
        assert_eq!((owners.link("a"), owners.link("b")), (Some(2), Some(1)));
        // The later owner gives it up, and the earlier one does not know yet that it is not its own.
        assert_eq!(owners.announce(2, owned(&[])), ["a"]);
        assert_eq!(owners.link("a"), Some(1));
        assert_eq!(owners.announce(1, owned(&[("a", 7), ("b", 1)])), ["a"], "a new epoch starts with new numbers");
        owners.end(1);
        assert_eq!((owners.link("a"), owners.link("b")), (None, None));
    }

    #[test]
    fn r5_a_link_that_was_never_there_waits_for_the_next_round() {
        let mut reach = Reach::default();
        assert!(reach.dial(1) && !reach.dial(1));
        assert!(!reach.ended(1, LinkEnd::Unreached));
        assert!(reach.dial(1));
        assert!(!reach.ended(1, LinkEnd::Replaced));
        assert!(reach.dial(1));
        assert!(reach.ended(1, LinkEnd::Announced));
    }

    #[test]
    fn r5_orchestrators_leave_an_owner_out_of_reach_and_not_one_that_was_replaced() {
        let (mut reach, at) = (Reach::default(), Duration::from_secs);
        assert!(!reach.is_cut_off(1, false, at(10)) && !reach.is_cut_off(1, false, at(14)));
        assert!(reach.is_cut_off(1, false, at(15)));
        assert!(!reach.is_cut_off(1, true, at(16)) && !reach.is_cut_off(1, false, at(20)));
        reach.ended(1, LinkEnd::Replaced);
        assert!(!reach.is_cut_off(1, false, at(30)) && !reach.is_cut_off(1, false, at(60)));
        // Whoever was there is gone as well, and nobody answers.
        reach.ended(1, LinkEnd::Unreached);
        assert!(!reach.is_cut_off(1, false, at(61)) && reach.is_cut_off(1, false, at(66)));
        reach.keep(&BTreeSet::from([2]));
        assert!(!reach.is_cut_off(1, false, at(67)));
    }

    proptest! {
        /// Whatever comes and goes: a queue that somebody announces has a link, and that link announces it with the latest epoch;
        /// every change of a queue's link is told.
        #[test]
        fn r5_every_announced_queue_has_a_link(steps in prop::collection::vec((0u8..5, 0usize..3, 1i64..4, any::<bool>()), 1..80)) {
            let (mut owners, names) = (Owners::<u8>::default(), ["a", "b", "c"]);
            let mut book: BTreeMap<u8, BTreeMap<String, i64>> = BTreeMap::new();
            for (link, queue, epoch, ends) in steps {
                let before = names.map(|name| owners.link(name));
                let told = if ends {
                    book.remove(&link);
                    owners.end(link)
                } else {
                    book.entry(link).or_default().insert(names[queue].to_owned(), epoch);
                    owners.announce(link, book[&link].clone())
                };
                for (name, before) in names.into_iter().zip(before) {
                    let latest = book.values().filter_map(|owned| owned.get(name)).max();
                    let served = owners.link(name).map(|link| book[&link].get(name));
                    prop_assert_eq!(served, latest.map(Some));
                    let moved = owners.link(name).is_some() && owners.link(name) != before;
                    prop_assert!(!moved || told.contains(&name.to_owned()));
                }
            }
        }
    }
}
