//! What every store must do. Each behaviour is one function over a [`World`], run on the model in memory, on SQLite and on
//! PostgreSQL: `cargo test -p millrace-tests --test conformance -- memory::claim` runs some on one of them. Behaviours named
//! r1 to r15 replay the interleaving that the protocol rule of that number answers.
//!
//! PostgreSQL comes from `tests/with-postgres.sh`.

mod claim;
mod complete;
mod concurrency;
mod demand;
mod drain;
mod drift;
mod fleet;
mod lists;
mod mending;
mod nodes;
mod ownership;
mod people;
mod postgres_only;
mod quarantine;
mod queues;
mod random;
mod retention;
mod routes;
mod served;
mod sessions;
mod sql;
mod submit;
mod tolerance;
mod waiting;
mod world;

use world::World;

/// Makes a test of every behaviour for every backend. A behaviour that is missing here is dead code, which the lints refuse.
macro_rules! behaviours {
    ($($subject:ident { $($behaviour:ident)* })*) => {
        behaviours!(@on memory { $($subject { $($behaviour)* })* });
        behaviours!(@on sqlite { $($subject { $($behaviour)* })* });
        behaviours!(@on postgres { $($subject { $($behaviour)* })* });
    };
    (@on $backend:ident { $($subject:ident { $($behaviour:ident)* })* }) => {
        mod $backend {
            $(mod $subject {
                $(#[test]
                fn $behaviour() {
                    let mut world = crate::World::$backend();
                    crate::$subject::$behaviour(&mut world);
                    world.check_invariants();
                })*
            })*
        }
    };
}

behaviours! {
    submit {
        a_task_reads_back_as_it_was_submitted
        a_task_without_a_moment_or_with_a_past_one_is_queued
        a_task_waits_for_its_moment
        a_deadline_counts_from_the_submission
        answers_come_in_the_order_of_the_batch
        empty_batches_are_answered
        r8_one_bad_submission_fails_alone
        r8_a_value_that_is_too_long_fails_alone
        r8_a_repeated_batch_after_an_unknown_commit_stores_nothing_twice
        r8_a_batch_of_which_a_part_was_stored_is_completed_by_its_repeat
        r11_a_request_key_stores_one_task
        r11_a_request_key_twice_in_one_batch_stores_one_task
        r11_a_request_key_answers_although_the_queue_has_closed
        r11_a_refused_submission_does_not_spend_its_key
        a_closed_queue_takes_nothing
        a_submission_routed_by_old_routes_is_sent_back
    }
    claim {
        a_claim_dispatches_the_task
        r1_a_repeated_claim_wins_again_with_the_same_token
        r2_a_claim_with_an_old_generation_is_refused
        r2_a_claim_for_a_closed_or_unknown_session_is_refused
        r2_a_claim_for_a_reaped_session_is_refused
        r5_a_claim_with_another_epoch_is_refused
        r5_a_claim_from_a_paused_queue_is_refused
        r5_a_claim_from_a_queue_that_never_was_is_not_won
        a_claim_of_what_does_not_wait_there_is_stale
        an_expired_task_is_not_claimed
        two_claims_of_one_batch_for_one_task_never_both_win
        r8_a_lost_claim_does_not_harm_its_neighbours
        r9_a_row_too_new_for_this_build_is_left_alone
        attempts_count_up_with_a_new_token_each
    }
    complete {
        a_completion_ends_the_task
        a_completion_never_lowers_what_was_spent
        completing_twice_is_recorded_once
        r2_a_stale_completion_changes_nothing
        r2_a_completion_after_a_requeue_is_stale
        r2_a_completion_after_a_requeue_and_a_cancellation_is_stale
        r2_a_completion_after_the_next_claim_is_stale
        r15_a_token_of_another_incarnation_is_stale
        a_task_that_is_being_cancelled_ends_cancelled_unless_it_succeeded
        r8_the_same_completion_twice_in_a_batch_and_neighbours
        r8_text_that_a_database_refuses_never_costs_an_outcome
        a_requeue_at_once_queues_the_task_at_the_end
        a_requeue_with_a_wait_schedules_the_task
        a_requeue_keeps_the_attempt
        r1_a_repeated_requeue_changes_nothing
        a_requeue_of_a_task_that_is_being_cancelled_changes_nothing
        r2_a_stale_requeue_changes_nothing
        held_rows_reads_what_is_still_held_with_the_lease
    }
    sessions {
        a_session_is_opened_once
        a_session_that_went_on_is_not_opened_again
        r1_a_resumed_session_is_told_what_it_holds
        r2_a_resume_raises_the_generation
        r2_a_live_session_resumes_by_any_generation_that_it_has_had
        a_session_closes_once
        a_session_is_closed_by_its_generation_or_by_any
        a_heartbeat_makes_accepted_attempts_run
        a_heartbeat_of_an_old_generation_renews_nothing
        a_heartbeat_accepts_only_its_own_leases
        r13_heartbeats_bring_cancellations
        r2_orphans_are_what_dead_sessions_hold
        r2_orphans_are_found_after_their_session_was_trimmed
        live_sessions_are_listed_with_what_they_hold
        sessions_over_for_long_are_trimmed
    }
    served {
        r7_a_lease_ends_when_served_time_has_passed_it
        r7_a_heartbeat_renews_the_lease
        r7_a_gap_ages_no_lease
        r7_nothing_is_reaped_while_the_clock_stands_still
        r7_a_session_that_ran_out_and_was_not_reaped_may_resume
        r7_a_slow_tick_counts_as_one
        r7_ticks_at_the_same_time_count_once
        reaping_is_bounded
        members_are_listed_while_their_lease_lasts
        r7_a_gap_ages_no_member_and_no_owner
        the_cluster_describes_itself
        r14_the_write_format_is_raised_once_every_live_reader_reads_it
    }
    waiting {
        r3_lanes_are_listed_in_the_order_of_bytes
        r3_lanes_page_and_name_only_what_waits
        r3_a_lane_pages_by_ready_time_and_id
        r3_a_lane_page_ends_at_its_bound
        r3_a_task_queued_again_stands_behind_the_cursor
        r3_a_page_knows_the_databases_time
        r3_waking_gives_the_time_of_waking
        waking_is_bounded_and_waits_for_the_moment
        expiring_ends_what_waited_too_long
        expiring_leaves_what_is_held
        positions_count_what_stands_before
    }
    people {
        unknown_tasks_are_not_found
        tasks_are_read_together_live_and_finished
        nothing_is_quarantined_in_a_new_database
        attempts_are_listed_oldest_first
        cancelling_a_waiting_task_ends_it
        cancelling_a_held_task_asks_for_its_end
        cancelling_twice_changes_nothing
        cancelling_a_finished_task_says_so
        r11_a_repeated_cancellation_does_not_cancel_a_retried_task
        retrying_queues_a_finished_task_with_fresh_budgets
        retrying_keeps_the_attempt_that_was_the_last_word
        retrying_an_expired_task_lets_it_wait_again
        retrying_what_has_not_ended_or_ended_well_is_refused
        retrying_into_a_closed_queue_is_refused
        r11_a_repeated_retry_says_so
        r11_request_keys_are_looked_up
    }
    lists {
        lists_go_newest_first_over_live_and_finished_tasks
        lists_page_without_gap_or_repeat
        lists_filter_by_tenant_queue_and_state
        lists_filter_beyond_the_scan_bound
        lists_go_on_where_they_stood_when_tasks_come_and_go
    }
    routes {
        a_new_database_routes_processes_to_the_default_queue
        a_route_is_set_replaced_and_deleted
        a_route_to_a_closed_queue_is_refused
        every_change_raises_the_version
        r11_a_repeated_route_change_changes_nothing
    }
    queues {
        queues_are_created_once_and_read_by_name
        r11_a_repeated_creation_returns_the_queue
        a_change_sets_only_what_it_names
        a_pause_is_set_replaced_and_lifted
        pauses_end_by_themselves
        r11_a_repeated_change_changes_nothing
        counts_tell_what_waits_and_runs
        the_audit_trail_takes_entries
    }
    drain {
        an_empty_queue_is_deleted
        a_queue_with_work_is_not_deleted_by_refuse
        a_queue_that_a_route_names_is_not_deleted
        a_draining_queue_takes_nothing_and_goes_once_empty
        a_moved_queue_gives_its_waiting_tasks_to_the_other
        r3_moved_tasks_join_at_the_time_of_the_move
        r3_moved_tasks_keep_their_order
        a_moved_queue_goes_once_what_runs_has_ended
        draining_is_bounded
        moving_needs_a_target_that_takes_tasks
        r11_a_repeated_deletion_is_gone
        r5_a_queue_made_again_refuses_claims_of_its_former_owner
    }
    ownership {
        r5_ownership_is_taken_once_and_renewed_by_its_owner
        r5_paused_owner_that_wakes_claims_nothing
        r5_each_change_of_owner_raises_the_epoch
        r5_an_owner_that_gives_up_is_followed_at_once
        r5_only_the_owner_gives_up
        r5_renewals_tell_which_queues_were_lost
        r5_a_renewed_lease_lasts
        r5_owners_are_listed
        r5_nobody_owns_a_queue_that_does_not_exist
    }
    retention {
        young_finished_tasks_are_kept
        old_finished_tasks_are_dropped
        old_and_young_share_no_fate
        no_task_is_dropped_before_its_time
        a_new_width_of_slots_drops_nothing_young
        live_tasks_are_never_dropped
        old_request_keys_are_dropped
        request_keys_are_looked_through_in_bounded_steps
        attempts_go_with_their_tasks
    }
    tolerance {
        r10_a_bad_row_in_a_batch_of_claims_harms_no_neighbour
        r10_a_lane_is_read_past_what_cannot_be_read
        r10_bad_rows_at_the_head_of_a_lane_do_not_stop_the_good_ones
        r10_an_attempt_that_cannot_be_one_is_never_leased
        r10_a_held_attempt_that_cannot_be_one_is_nobodys_to_name
        r10_numbers_that_nobody_can_have_meant_are_ignored_where_they_are_optional
        r10_a_moment_that_cannot_be_one_orders_nothing_for_long
        r9_what_is_too_new_is_not_cancelled_or_retried
        r10_waking_and_expiring_go_past_what_cannot_be_read
        r10_what_dead_sessions_hold_is_found_past_what_cannot_be_read
        r10_lists_go_past_what_cannot_be_read
        r10_a_bad_row_is_an_error_of_its_own_read_alone
        r10_what_readers_cannot_read_becomes_a_suspect_once
        r10_an_unreadable_optional_column_is_ignored_and_counted
        r10_an_optional_field_of_the_spec_is_ignored_and_counted
        a_type_that_means_the_same_is_read
        counts_moves_and_deletions_go_past_what_cannot_be_read
        strays_are_what_no_feeder_meets
        drift_reports_a_changed_type
    }
    quarantine {
        r10_a_bad_row_alone_is_set_aside_with_every_column_and_byte
        r10_a_claim_sets_aside_what_it_cannot_run
        r9_what_is_too_new_is_left_alone_and_counted
        r10_a_row_that_a_live_session_holds_stays_and_can_complete
        r10_a_held_row_with_nothing_where_something_should_be_can_complete
        r10_a_row_that_nobody_has_got_to_run_is_with_nobody
        r10_a_transient_error_quarantines_nothing
        r10_examining_again_changes_nothing
        r10_inspecting_changes_nothing_and_pages_through_every_row
        r9_a_build_that_has_refused_a_row_does_not_examine_it_again_and_another_does
        r9_reexamining_goes_on_from_page_to_page
        r9_a_row_remembers_a_bounded_number_of_builds
        the_quarantine_is_filtered_and_paged
        r11_a_quarantined_task_still_has_its_request_key
        retention_spares_what_is_set_aside
    }
    mending {
        released_rows_run_with_their_bytes_and_unknown_columns_intact
        a_released_row_goes_on_where_it_was
        r10_what_was_being_cancelled_ends_with_its_release
        a_release_is_refused_while_the_row_cannot_be_read
        a_row_whose_queue_is_gone_is_not_released
        releasing_again_changes_nothing
        a_repair_is_judged_before_it_releases
        a_row_that_joined_its_queue_at_no_moment_joins_it_with_its_release
        a_row_that_a_claim_has_set_aside_is_mended_as_one_that_waits
        a_repaired_spec_runs
        a_repair_of_what_is_no_column_is_refused
        discarding_ends_the_task_and_keeps_the_row
        discarding_again_changes_nothing
    }
    concurrency {
        two_claimers_for_the_same_tasks_never_both_win
        r5_no_claim_of_the_old_epoch_commits_after_the_epoch_was_raised
        r5_no_claim_commits_after_a_pause_has_returned
        r5_one_of_many_members_takes_a_queue
        r2_a_session_reaped_while_claims_run_leaves_no_lost_task
        r2_a_resume_while_claims_run_is_told_of_every_one
        r11_concurrent_submissions_with_one_key_store_one_task
        r8_batches_that_overlap_in_any_order_do_not_meet
        cancel_against_claim
        cancel_against_complete
        requeue_against_cancel
        completing_from_two_sides_records_one_outcome
        reapers_wakers_and_expirers_share_the_work
        a_task_on_the_move_is_neither_missed_nor_doubled
    }
    fleet {
        r5_the_lease_is_taken_once_and_renewed_by_its_owner
        r5_a_lease_that_has_ended_is_anyones_and_its_epoch_rises
        r5_a_leader_that_resigns_is_followed_at_once
        r5_a_stale_epoch_writes_nothing
        r5_an_expired_lease_writes_nothing
        r5_no_save_commits_after_another_has_taken_the_lease
        pools_are_created_once_and_read_by_name
        r11_a_repeated_creation_of_a_pool_returns_it
        a_change_of_a_pool_needs_its_version_and_raises_it
        r11_a_repeated_change_of_a_pool_changes_nothing
        an_empty_pool_is_deleted_at_once
        a_pool_with_nodes_goes_with_its_last_one
        r11_a_repeated_deletion_of_a_pool_is_gone
        statuses_are_those_written_last
        r10_a_pool_that_cannot_be_read_costs_no_neighbour
    }
    nodes {
        nodes_read_back_as_they_were_saved
        text_that_a_database_refuses_never_costs_a_round
        nodes_are_filtered_by_pool_state_and_time
        nodes_page_without_gap_or_repeat
        events_are_kept_in_their_order_and_once
        a_drain_that_was_asked_for_outlives_the_leaders_writes
        nodes_that_went_long_ago_are_trimmed
        r10_a_node_that_cannot_be_read_costs_no_neighbour
    }
    demand {
        demand_tells_what_waits_and_runs
        arrivals_are_counted_over_the_window
        arrivals_are_counted_over_no_more_than_what_was_looked_at
        run_times_are_averaged_over_what_has_run_to_its_end
    }
}
