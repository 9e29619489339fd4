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
    StaleCompletionCounts,
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
    /// R6: the numbers of one epoch's matches are used in the next.
    DemandNumbersOutliveTheEpoch,
    /// A queue that one link has lost is not looked for on the others.
    QueuesGoWithTheirLink,
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
    /// R1: an assignment is sent once.
    NothingIsSentAgain,
    /// R1: an overdue attempt is sent again although it has been reported while the database was asked.
    ResentAfterTheEnd,
    /// R2: what sessions that are over hold stays with them.
    OrphansAreLeft,
    /// R16: an exclusive attempt runs on when its lease cannot be renewed.
    ExclusiveRunsOn,
    /// An orchestrator that hears on an open stream that its session is gone believes it at once.
    GoneOnAStreamIsBelieved,
    /// An orchestrator takes an assignment that it knows for a new one.
    RepeatsAreRun,
}

impl Mutant {
    /// The kind of world in which it must show soon.
    pub(crate) fn weather(self) -> Weather {
        match self {
            Mutant::EpochIsNotChecked
            | Mutant::DemandNumbersOutliveTheLink
            | Mutant::DemandNumbersOutliveTheEpoch
            | Mutant::QueuesGoWithTheirLink => Weather::Owners,
            Mutant::ListsAreNotCompared
            | Mutant::NothingIsSentAgain
            | Mutant::ResentAfterTheEnd
            | Mutant::RepeatsAreRun => Weather::Slow,
            Mutant::FeedsDoNotOverlap => Weather::LateCommits,
            Mutant::ExclusiveRunsOn => Weather::Exclusive,
            _ => Weather::Chaos,
        }
    }
}

/// Every one.
pub(crate) const MUTANTS: [Mutant; 22] = [
    Mutant::EpochIsNotChecked,
    Mutant::GenerationIsNotChecked,
    Mutant::StaleCompletionCounts,
    Mutant::PauseIsNotInTheGate,
    Mutant::DowntimeAgesLeases,
    Mutant::CreditsAdd,
    Mutant::MatchesLeak,
    Mutant::DemandNumbersOutliveTheLink,
    Mutant::DemandNumbersOutliveTheEpoch,
    Mutant::QueuesGoWithTheirLink,
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
    Mutant::GoneOnAStreamIsBelieved,
    Mutant::RepeatsAreRun,
];
