//! The served clock and the members.

use millrace_core::{id::MemberId, served::TickRule, time::Timestamp};

use super::model::{Member, Model};
use crate::{Activated, types::*};

/// How long a member whose lease has ended is kept, in served milliseconds.
const MEMBER_KEPT_MS: i64 = 3_600_000;

impl Model {
    pub(super) fn tick(&mut self, now: i64, rule: TickRule) -> Tick {
        self.clock = self.clock.tick(Timestamp(now), rule);
        Tick { clock: self.clock, now: Timestamp(now) }
    }

    pub(super) fn renew_member(&mut self, now: i64, member: &MemberRow, ttl_ms: i64) {
        let row = MemberRow { seen_at_us: now, ..member.clone() };
        let expires_served_ms = self.clock.served_ms.saturating_add(ttl_ms);
        self.members.insert(member.id, Member { row, expires_served_ms });
        let kept_from_ms = self.clock.served_ms - MEMBER_KEPT_MS;
        self.members.retain(|_, member| member.expires_served_ms >= kept_from_ms);
    }

    pub(super) fn remove_member(&mut self, member: MemberId) {
        self.members.remove(&member);
    }

    pub(super) fn activate(&mut self, now: i64, format: i16, rollback_reads: i16, audit: &Audit) -> Activated {
        let before = self.cluster.write_format;
        let behind: Vec<MemberRow> = self.members().into_iter().filter(|member| member.readers.1 < format).collect();
        if before >= format {
            return Activated::Already(before);
        }
        if !behind.is_empty() {
            return Activated::Behind(behind);
        }
        if rollback_reads < format {
            return Activated::RollbackBehind(rollback_reads);
        }
        self.cluster.write_format = format;
        self.audit.push((now, audit.clone()));
        Activated::Done { before }
    }

    pub(super) fn members(&self) -> Vec<MemberRow> {
        let live = self.members.values().filter(|member| !self.has_ended(member.expires_served_ms));
        let mut rows: Vec<MemberRow> = live.map(|member| member.row.clone()).collect();
        rows.sort_by_key(|row| (row.kind as i16, row.id));
        rows
    }
}
