//! Bugs that can be planted in a world, to prove that the simulation finds them.

use crate::config::Weather;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// R5: a claim is taken whatever the epoch of its match.
    EpochIsNotChecked,
    /// R2: a claim is taken whatever the session's generation.
    GenerationIsNotChecked,
    /// R2: a report ends whichever attempt the task is in.
    StaleReportsCount,
    /// A pause stops the matcher only.
    PauseIsNotInTheGate,
    /// R7: served time counts what passed while nobody ticked.
    DowntimeAgesLeases,
    /// R6: a grant is added to what is left of the one before.
    CreditsAdd,
    /// R6: a match without an answer stays away from its window.
    MatchesLeak,
    /// R6: the numbers of one exchange stream are used on the next.
    DemandNumbersOutliveTheLink,
    /// R6: a queue that was lost and regained goes on with the numbers of its stream.
    RegainedOnTheSameStream,
    /// R5: whoever answers at an owner's endpoint is taken for it, and a queue that one link has lost is not looked for on the
    /// others.
    QueuesGoWithTheirLink,
    /// A link that could not be opened is tried again without a pause.
    LinksAreRetriedAtOnce,
    /// R3: feeds do not go back for rows that appear late.
    FeedsDoNotOverlap,
    /// R3: nothing reads a lane again.
    NothingIsSwept,
    /// R8: a claim whose outcome is unknown is repeated with a new token.
    ClaimsAreRepeatedAnew,
    /// R8: a submission whose outcome is unknown is repeated with a new id.
    SubmissionsAreRepeatedAnew,
    /// A submission is acknowledged when its commit fails as well.
    AcknowledgedBeforeTheCommit,
    /// R1: nobody compares which attempts are held.
    ListsAreNotCompared,
    /// R1: an assignment is sent once, whatever the lists say.
    NothingIsSentAgain,
    /// R1: an attempt is sent again that has ended while the database was asked.
    ResentAfterTheEnd,
    /// R2: what sessions that are over hold stays with them.
    OrphansAreLeft,
    /// R16: an exclusive attempt runs on when its lease cannot be renewed.
    ExclusiveRunsOn,
    /// R16: a lease is no longer in the database than its orchestrator is told.
    LeasesHaveNoSlack,
    /// R2: a replica that finds a later generation says that the session is gone.
    MovedIsCalledGone,
    /// An orchestrator takes an assignment that it knows for a new one.
    RepeatsAreRun,
}

impl Mutant {
    /// The kind of world in which it must show soon.
    pub(crate) fn weather(self) -> Weather {
        match self {
            Mutant::EpochIsNotChecked
            | Mutant::DemandNumbersOutliveTheLink
            | Mutant::RegainedOnTheSameStream
            | Mutant::LinksAreRetriedAtOnce
            | Mutant::QueuesGoWithTheirLink => Weather::Owners,
            Mutant::ListsAreNotCompared | Mutant::NothingIsSentAgain => Weather::Outages,
            Mutant::ResentAfterTheEnd | Mutant::RepeatsAreRun | Mutant::MovedIsCalledGone => Weather::Slow,
            Mutant::FeedsDoNotOverlap => Weather::LateCommits,
            Mutant::ExclusiveRunsOn | Mutant::LeasesHaveNoSlack => Weather::Exclusive,
            _ => Weather::Chaos,
        }
    }
}

/// Every one.
pub(crate) const MUTANTS: [Mutant; 24] = [
    Mutant::EpochIsNotChecked,
    Mutant::GenerationIsNotChecked,
    Mutant::StaleReportsCount,
    Mutant::PauseIsNotInTheGate,
    Mutant::DowntimeAgesLeases,
    Mutant::CreditsAdd,
    Mutant::MatchesLeak,
    Mutant::DemandNumbersOutliveTheLink,
    Mutant::RegainedOnTheSameStream,
    Mutant::QueuesGoWithTheirLink,
    Mutant::LinksAreRetriedAtOnce,
    Mutant::FeedsDoNotOverlap,
    Mutant::NothingIsSwept,
    Mutant::ClaimsAreRepeatedAnew,
    Mutant::SubmissionsAreRepeatedAnew,
    Mutant::AcknowledgedBeforeTheCommit,
    Mutant::ListsAreNotCompared,
    Mutant::NothingIsSentAgain,
    Mutant::ResentAfterTheEnd,
    Mutant::OrphansAreLeft,
    Mutant::ExclusiveRunsOn,
    Mutant::LeasesHaveNoSlack,
    Mutant::MovedIsCalledGone,
    Mutant::RepeatsAreRun,
];
