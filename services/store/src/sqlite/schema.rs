//! The tables of migrations/sqlite, as the query builder knows them.
//!
//! The types say what belongs into a column. What comes out is read by [`super::values`], which takes nothing on trust.

use diesel::{
    expression::AsExpression,
    serialize::{IsNull, Output, Result, ToSql},
    sql_types::Binary,
    sqlite::Sqlite,
};
use uuid::Uuid;

/// A UUID as the 16 bytes that its columns hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsExpression)]
#[diesel(sql_type = Binary)]
pub(super) struct Key(pub(super) Uuid);

impl ToSql<Binary, Sqlite> for Key {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> Result {
        out.set_value(self.0.as_bytes().as_slice());
        Ok(IsNull::No)
    }
}

/// `sessions.state` of a session that holds its lease.
pub(super) const SESSION_LIVE: i16 = 1;

/// `sessions.state` of one that has expired or was closed.
pub(super) const SESSION_OVER: i16 = 2;

diesel::table! {
    cluster (one) {
        one -> SmallInt,
        incarnation -> SmallInt,
        write_format -> SmallInt,
        route_version -> BigInt,
        slice_us -> BigInt,
    }
}

diesel::table! {
    served_clock (one) {
        one -> SmallInt,
        served_ms -> BigInt,
        ticked_at_us -> BigInt,
        frozen_ms -> BigInt,
    }
}

diesel::table! {
    members (id) {
        id -> Binary,
        kind -> SmallInt,
        endpoint -> Text,
        build -> Text,
        reader_min -> SmallInt,
        reader_max -> SmallInt,
        expires_served_ms -> BigInt,
        seen_at_us -> BigInt,
    }
}

diesel::table! {
    queues (name) {
        name -> Text,
        description -> Text,
        default_timeout_ms -> Nullable<BigInt>,
        default_expire_after_ms -> Nullable<BigInt>,
        paused -> Bool,
        pause_reason -> Text,
        pause_until_us -> Nullable<BigInt>,
        pause_since_us -> Nullable<BigInt>,
        draining -> Bool,
        move_to -> Nullable<Text>,
        created_at_us -> BigInt,
        updated_at_us -> BigInt,
    }
}

diesel::table! {
    queue_gates (queue) {
        queue -> Text,
        epoch -> BigInt,
        paused -> Bool,
    }
}

diesel::table! {
    queue_leases (queue) {
        queue -> Text,
        owner -> Nullable<Binary>,
        endpoint -> Text,
        epoch -> BigInt,
        expires_served_ms -> BigInt,
    }
}

diesel::table! {
    routes (name) {
        name -> Text,
        ord -> Integer,
        executor -> Text,
        resource_class -> Text,
        tenant -> Text,
        labels -> Text,
        queue -> Text,
    }
}

diesel::table! {
    sessions (id) {
        id -> Binary,
        generation -> BigInt,
        state -> SmallInt,
        name -> Text,
        queues -> Text,
        labels -> Text,
        slots -> Integer,
        ttl_ms -> BigInt,
        expires_served_ms -> BigInt,
        replica -> Text,
        build -> Text,
        created_at_us -> BigInt,
        seen_at_us -> BigInt,
        over_at_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    tasks (id) {
        id -> Binary,
        tenant -> Text,
        queue -> Text,
        state -> SmallInt,
        rank -> Integer,
        executor -> Text,
        resource_class -> Text,
        concurrency_key -> Text,
        exclusive -> Bool,
        timeout_ms -> Nullable<BigInt>,
        attempt -> Integer,
        token -> Nullable<BigInt>,
        session_id -> Nullable<Binary>,
        failures -> Integer,
        losses -> Integer,
        unsupported -> Integer,
        created_at_us -> BigInt,
        ready_at_us -> Nullable<BigInt>,
        wake_at_us -> Nullable<BigInt>,
        expires_at_us -> Nullable<BigInt>,
        dispatched_at_us -> Nullable<BigInt>,
        started_at_us -> Nullable<BigInt>,
        trace_context -> Text,
        format -> SmallInt,
        min_reader -> SmallInt,
        spec -> Binary,
    }
}

diesel::table! {
    /// Without `unsupported`, which only the moves between the tables carry.
    finished_tasks (id, slot) {
        id -> Binary,
        slot -> SmallInt,
        tenant -> Text,
        queue -> Text,
        state -> SmallInt,
        rank -> Integer,
        executor -> Text,
        resource_class -> Text,
        concurrency_key -> Text,
        exclusive -> Bool,
        timeout_ms -> Nullable<BigInt>,
        attempt -> Integer,
        token -> Nullable<BigInt>,
        session_id -> Nullable<Binary>,
        failures -> Integer,
        losses -> Integer,
        created_at_us -> BigInt,
        expires_at_us -> Nullable<BigInt>,
        dispatched_at_us -> Nullable<BigInt>,
        started_at_us -> Nullable<BigInt>,
        trace_context -> Text,
        format -> SmallInt,
        min_reader -> SmallInt,
        finished_at_us -> BigInt,
        outcome -> SmallInt,
        exit_code -> Nullable<Integer>,
        signal -> Nullable<Integer>,
        message -> Text,
        output_bytes -> BigInt,
        ended_at_us -> Nullable<BigInt>,
        output_tail -> Binary,
        spec -> Binary,
    }
}

diesel::table! {
    requests (key) {
        key -> Binary,
        task_id -> Nullable<Binary>,
        created_at_us -> BigInt,
    }
}

diesel::table! {
    attempts (task_id, attempt) {
        task_id -> Binary,
        attempt -> Integer,
        token -> Nullable<BigInt>,
        session_id -> Nullable<Binary>,
        orchestrator -> Text,
        dispatched_at_us -> Nullable<BigInt>,
        recorded_at_us -> BigInt,
        outcome -> SmallInt,
        exit_code -> Nullable<Integer>,
        signal -> Nullable<Integer>,
        message -> Text,
        output_bytes -> BigInt,
        started_at_us -> Nullable<BigInt>,
        ended_at_us -> Nullable<BigInt>,
        output_tail -> Binary,
    }
}

diesel::table! {
    quarantine (task_id) {
        task_id -> Binary,
    }
}

diesel::table! {
    audit (id) {
        id -> BigInt,
        at_us -> BigInt,
        action -> Text,
        subject -> Text,
        detail -> Text,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    tasks,
    finished_tasks,
    attempts,
    sessions,
    queues,
    queue_gates,
    queue_leases
);
